from __future__ import annotations

import os
import sys

import pytest

from finelens.errors import UserError
from finelens.images.discover import discover


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


def test_folder_links_are_not_followed_and_loops_end(tmp_path):
    touch(tmp_path / "a" / "one.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert names(discover(tmp_path)) == ["a/one.jpg"]


def test_file_reached_by_several_links_is_counted_once(tmp_path):
    touch(tmp_path / "photos" / "m.jpg")
    touch(tmp_path / "elsewhere.jpg")
    (tmp_path / "photos" / "a.jpg").symlink_to(tmp_path / "photos" / "m.jpg")
    for name in ("x.jpg", "y.jpg"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "elsewhere.jpg")
    # The real entry wins over an earlier link; of two links outwards the first.
    assert names(discover(tmp_path / "photos")) == ["m.jpg", "x.jpg"]


def test_broken_link_keeps_its_row(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    assert names(discover(tmp_path)) == ["gone.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
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
    assert names(discover(tmp_path)) == ["a.jpg"]


def test_run_folder_inside_is_excluded(tmp_path):
    touch(tmp_path / "a.jpg")
    touch(tmp_path / "run" / "report.png")
    assert names(discover(tmp_path, exclude=tmp_path / "run")) == ["a.jpg"]


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
