from __future__ import annotations

import errno
import os
import sys

import pytest

from finelens.errors import UserError
from finelens.images.decode import DecodeLimits, Failure, decode
from finelens.images.discover import discover, visible_files


def touch(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def names(files) -> list[str]:
    return [file.name for file in files]


def test_recursive_sorted_and_every_visible_file(tmp_path):
    for name in ("b/2.JPG", "a/10.png", "z.txt", "a/9.png", ".hidden", ".git/x.jpg", "__MACOSX/a.jpg", "a/Thumbs.db", "desktop.ini"):
        touch(tmp_path / name)
    files = discover(tmp_path)
    assert names(files) == ["a/10.png", "a/9.png", "b/2.JPG", "z.txt"]
    assert all(file.path.is_absolute() and file.path.is_file() for file in files)


def test_relative_root(tmp_path, monkeypatch):
    touch(tmp_path / "photos" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    (file,) = discover(type(tmp_path)("photos"))
    assert file.name == "a.jpg"
    assert file.path == tmp_path / "photos" / "a.jpg"


def test_loops_end(tmp_path):
    touch(tmp_path / "photos" / "a" / "one.jpg")
    touch(tmp_path / "secret.jpg")
    for name, target in (("loop", tmp_path / "photos"), ("up", tmp_path), ("beside", tmp_path / "photos" / "a")):
        (tmp_path / "photos" / "a" / name).symlink_to(target, target_is_directory=True)
    files = discover(tmp_path / "photos")
    assert names(files) == ["a/one.jpg"]
    assert files.remarks == ("linked folders: 3 not followed, as they lead back or are read already (first a/beside)",)


def test_linked_folders_are_followed_once(tmp_path):
    touch(tmp_path / "photos" / "siteA" / "a.jpg")
    for name in ("b.jpg", "deep/c.jpg"):
        touch(tmp_path / "store" / "siteB" / name)
    (tmp_path / "store" / "siteB" / "deep" / "back").symlink_to(tmp_path / "store" / "siteB")
    (tmp_path / "photos" / "siteB").symlink_to("../store/siteB")
    (tmp_path / "photos" / "siteC").symlink_to("../store/siteB")
    (tmp_path / "photos" / "siteD").symlink_to("../store/siteB/deep")
    (tmp_path / "photos" / "whole").symlink_to("../store")
    files = discover(tmp_path / "photos")
    assert names(files) == ["siteA/a.jpg", "siteB/b.jpg", "siteB/deep/c.jpg"]
    assert files.remarks == (
        "linked folders: 3 not followed, as they lead back or are read already (first siteB/deep/back)",
        "linked folders: 2 followed (first siteB)",
    )
    assert names(visible_files(tmp_path / "photos")) == names(files)


def test_each_link_to_one_content_is_a_row(tmp_path):
    """The store of a hub, of DVC or of git-annex: folders of links to files named by their digest."""
    touch(tmp_path / "photos" / "m.jpg")
    touch(tmp_path / "blobs" / "0123")
    (tmp_path / "photos" / "a.jpg").symlink_to(tmp_path / "photos" / "m.jpg")
    for name in ("x.jpg", "y.jpg"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "blobs" / "0123")
    os.link(tmp_path / "blobs" / "0123", tmp_path / "photos" / "z.jpg")
    files = discover(tmp_path / "photos")
    assert names(files) == ["a.jpg", "m.jpg", "x.jpg", "y.jpg", "z.jpg"]
    assert files.remarks == ()


LEFT = ("@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/a.jpg", "@Recycle/a.jpg", "$RECYCLE.BIN/S-1/$R1.JPG", "System Volume Information/x.dat")
LEFT += ("lost+found/1.jpg", "FOUND.000/FILE0000.CHK", "LOST.DIR/1", "#snapshot/a.jpg", ".Trashes/a.jpg", "site/@eaDir/b.jpg", "ehthumbs.db")


def test_leftovers_of_storage_and_recycle_bins_are_counted(tmp_path):
    for name in ("1.jpg", "found/2.jpg", "recycle/3.jpg", "site/4.jpg", *LEFT):
        touch(tmp_path / name)
    files = discover(tmp_path)
    assert names(files) == ["1.jpg", "found/2.jpg", "recycle/3.jpg", "site/4.jpg"]
    assert files.remarks == ("left out: 12 hidden or left by a system (first #recycle)",)


def test_broken_link_keeps_its_row(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    assert names(discover(tmp_path)) == ["gone.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOENT, errno.EIO])
def test_a_file_that_cannot_be_looked_at_keeps_its_row(tmp_path, monkeypatch, code):
    """As in a folder that one may list and not enter: such files were left out, as pipes."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    look = os.stat

    def refused(path, *args, **given):
        if str(path).endswith("b.png"):
            raise OSError(code, os.strerror(code), path)
        return look(path, *args, **given)

    monkeypatch.setattr(os, "stat", refused)
    files = discover(tmp_path)
    assert [file.name for file in files] == ["a.png", "b.png"]
    assert files.remarks == ()
    found = decode(files[1].path, DecodeLimits())
    assert isinstance(found, Failure)
    assert found.status == ("vanished" if code == errno.ENOENT else "unreadable")


def test_name_that_is_not_utf8_is_printable_and_opens(tmp_path):
    raw = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    with open(raw, "wb") as file:
        file.write(b"x")
    touch(tmp_path / "日本 ☕.jpg")
    files = discover(tmp_path)
    assert names(files) == ["caf\\xe9.jpg", "日本 ☕.jpg"]
    assert files[0].name.encode("utf-8")
    assert files[0].path.read_bytes() == b"x"


def test_path_over_255_bytes(tmp_path):
    name = "/".join(["d" * 200] * 3) + "/a.jpg"
    touch(tmp_path / name)
    assert names(discover(tmp_path)) == [name]


def test_pipes_are_not_read(tmp_path):
    touch(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    files = discover(tmp_path)
    assert names(files) == ["a.jpg"]
    assert files.remarks == ("left out: 1 pipes, sockets or devices (first pipe.jpg)",)


def test_errors_name_the_path_and_the_remedy(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        discover(tmp_path / "missing")
    touch(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="is a file; give the folder"):
        discover(tmp_path / "a.jpg")
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "empty" / ".DS_Store")
    with pytest.raises(UserError, match="no photographs in"):
        discover(tmp_path / "empty")


@pytest.mark.skipif(os.sep == "\\", reason="no such names here")
def test_a_line_break_and_its_spelling_are_two_names(tmp_path):
    for name in ("a\nb.jpg", "a\\nb.jpg", "c\\d.jpg", "e\\\\f\n.jpg", "e\\f\n.jpg"):
        (tmp_path / name).write_text(name)
    files = discover(tmp_path)
    read = {file.name: file.path.read_text() for file in files}
    assert len(read) == len(files) == 5
    assert (read["a\\nb.jpg"], read["a\\\\nb.jpg"]) == ("a\nb.jpg", "a\\nb.jpg")
    # What has its name for itself keeps it.
    assert read["c\\d.jpg"] == "c\\d.jpg"
    assert [file.name for file in discover(tmp_path)] == [file.name for file in files]
