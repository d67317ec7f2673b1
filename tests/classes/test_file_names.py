"""Files in labels, hints and row names: accepted where exactly one file is meant, else the fault is named; one unknown does not refuse all."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from finelens.classes.file_names import FileNames
from finelens.classes.labels import LeftOut, read_labels
from finelens.errors import UserError
from finelens.storage.cells import escape_cell

NFC, NFD = (lambda text: unicodedata.normalize("NFC", text)), (lambda text: unicodedata.normalize("NFD", text))
CLASSES = ["cat", "dog"]


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "my photos"
    for name in (NFD("Bär müde.jpg"), "a b.jpg", "cat/1.jpg", "dog/1.jpg", "100%25.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def labels(photos: Path, *cells: str, **given) -> dict[str, int]:
    file = photos.parent / "labels.csv"
    file.write_text("path,label\n" + "".join(f'"{cell}",cat\n' for cell in cells))
    return read_labels(photos, file, CLASSES, **given)


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (NFC("Bär müde.jpg"), NFD("Bär müde.jpg")),
        (NFD("Bär müde.jpg"), NFD("Bär müde.jpg")),
        ("B%C3%A4r%20m%C3%BCde.jpg", NFD("Bär müde.jpg")),
        ("a%20b.jpg", "a b.jpg"),
        (" a b.jpg  ", "a b.jpg"),
        ("cat\\1.jpg", "cat/1.jpg"),
        (".\\cat\\1.jpg", "cat/1.jpg"),
        ("./cat/1.jpg", "cat/1.jpg"),
        ("my photos/cat/1.jpg", "cat/1.jpg"),
        ("my%20photos\\cat\\1.jpg", "cat/1.jpg"),
        ("100%25.jpg", "100%25.jpg"),
    ],
)
def test_other_spellings_of_one_file(photos, cell, name):
    assert labels(photos, cell) == {name: 0}


def test_absolute_paths_inside_the_folder(photos, tmp_path, monkeypatch):
    assert labels(photos, f"{photos}/cat/1.jpg") == {"cat/1.jpg": 0}
    (tmp_path / "link").symlink_to(photos)
    assert labels(tmp_path / "link", f"{photos}/cat/1.jpg") == {"cat/1.jpg": 0}
    monkeypatch.chdir(tmp_path)
    assert labels(Path("my photos"), f"{photos}/cat/1.jpg") == {"cat/1.jpg": 0}


@pytest.mark.parametrize("cell", ["/elsewhere/cat/1.jpg", "../labels.csv", "C:\\\\photos\\\\cat\\\\1.jpg", "cat/../../labels.csv"])
def test_paths_out_of_the_folder_are_refused_even_where_others_are_left_out(photos, cell):
    with pytest.raises(UserError, match="leaves the folder"):
        labels(photos, "a b.jpg", cell.replace("\\\\", "\\"), left_out=[])


def test_two_files_that_may_be_meant_are_named():
    names = FileNames([NFC("é.jpg"), NFD("é.jpg"), "a b.jpg", "a%20b.jpg"])
    # As it stands goes first, whatever else it may mean.
    assert names.find(NFD("é.jpg")) == [NFD("é.jpg")]
    assert names.find("a%20b.jpg") == ["a%20b.jpg"]
    assert names.find(" é.jpg") == sorted([NFC("é.jpg"), NFD("é.jpg")])
    assert names.find("ee.jpg") == []


def test_a_cell_that_may_be_two_files_is_refused(photos):
    for form in (NFC, NFD):
        (photos / form("ö.jpg")).write_bytes(b"")
    if len(list(photos.glob("*.jpg"))) < 5:
        pytest.skip("this file system keeps one of the two")
    with pytest.raises(UserError, match="may be any of"):
        labels(photos, NFC("ö.jpg") + " ")


def test_one_unknown_file_is_counted_and_all_unknown_are_refused(photos):
    left_out: list[str] = []
    assert labels(photos, "a b.jpg", "gone.jpg", left_out=left_out) == {"a b.jpg": 0}
    assert len(left_out) == 1
    assert "line 3: there is no file 'gone.jpg'" in left_out[0]
    with pytest.raises(UserError, match=r"there is no file 'gone\.jpg'"):
        labels(photos, "gone.jpg", "gone too.jpg", left_out=[])
    with pytest.raises(UserError, match=r"there is no file 'gone\.jpg'"):
        labels(photos, "a b.jpg", "gone.jpg")


def test_an_extra_folder_is_counted(photos):
    (photos / "misc").mkdir()
    left_out: list[str] = []
    assert read_labels(photos, "folders", CLASSES, left_out=left_out) == {"cat/1.jpg": 0, "dog/1.jpg": 1}
    assert left_out == ["folder 'misc' is of no class"]
    with pytest.raises(UserError, match="of no class: 'misc'"):
        read_labels(photos, "folders", CLASSES)
    with pytest.raises(UserError, match="3 folders of no class"):
        read_labels(photos, "folders", ["horse"], left_out=[])
    (photos / "cat").rename(photos / "cats")
    with pytest.raises(UserError, match=r"'cats' .nearest class: 'cat'."):
        read_labels(photos, "folders", CLASSES, left_out=[])
    names = ["cat/1.jpg", "misc/1.jpg"]
    assert read_labels(photos / "f.npy", "folders", CLASSES, names=names, left_out=left_out) == {"cat/1.jpg": 0}
    assert len(left_out) == 2


def test_photographs_of_no_class_are_counted(photos):
    """Folders are few, what lies in them may be most of what was given."""
    for name in ("misc/1.jpg", "misc/deep/2.PNG", "misc/notes.txt", "loose.jpg", "classes.txt"):
        (photos / name).parent.mkdir(exist_ok=True, parents=True)
        (photos / name).touch()
    (photos / "empty").mkdir()
    found = LeftOut()
    read_labels(photos, "folders", CLASSES, left_out=found)
    assert (found.photographs, found.folders) == ({"": 4, "misc": 2}, 2)
    assert found.lines("it") == [
        "2 photographs in 2 folders of no class left out of it: 'misc' 2",
        "4 photographs in no folder left out of it",
    ]
    found.append("line 3: no such file")
    assert found.lines("it")[2] == "1 label is left out of it, the first because: line 3: no such file"
    strangers = LeftOut()
    read_labels(photos, "folders", CLASSES, left_out=strangers, strangers=-1)
    assert strangers.lines("it") == ["4 photographs in no folder left out of it"]
    stored = LeftOut()
    read_labels(photos / "f.npy", "folders", CLASSES, names=["cat/1", "misc/1", "misc/2"], left_out=stored)
    assert stored.lines("it") == ["2 photographs in 1 folder of no class left out of it: 'misc' 2"]


def test_a_cell_of_a_table_means_the_file_that_the_table_wrote_it_for():
    """Names that begin with the apostrophe themselves are beside those that got one."""
    names = ["=x.jpg", "'=x.jpg", "''=x.jpg", "a.jpg"]
    assert [FileNames(names).find(escape_cell(name)) for name in names] == [[name] for name in names]
    assert FileNames(["'=x.jpg"]).find("'=x.jpg") == ["'=x.jpg"]
