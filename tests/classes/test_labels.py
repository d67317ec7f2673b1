from __future__ import annotations

import os

import pytest

from finelens.classes.labels import read_labels
from finelens.errors import UserError

NAMES = ["tabby cat", "dog", "C++"]


@pytest.fixture
def test_dir(tmp_path):
    for path in ("Tabby_Cat/a.jpg", "Tabby_Cat/deep/b.jpg", "dog/c.jpg", "dog/=x.jpg", "dog/a, b\n\u05d0.jpg"):
        (tmp_path / "test" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "test" / path).touch()
    return tmp_path / "test"


def labels_file(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_folders_are_matched_by_name(test_dir):
    expected = {"Tabby_Cat/a.jpg": 0, "Tabby_Cat/deep/b.jpg": 0, "dog/c.jpg": 1, "dog/=x.jpg": 1, "dog/a, b\\n\u05d0.jpg": 1}
    assert read_labels(test_dir, "folders", NAMES) == expected
    assert read_labels(str(test_dir), "folders", NAMES[::-1]) == {path: 2 - i for path, i in expected.items()}


def test_the_rule_for_folders_can_be_given(test_dir):
    asked = []

    def rule(folder, names):
        asked.append((folder, names))
        return {"Tabby_Cat": "C++"}

    assert read_labels(test_dir, "folders", NAMES, folder_classes=rule) == {"Tabby_Cat/a.jpg": 2, "Tabby_Cat/deep/b.jpg": 2}
    assert asked == [(test_dir, NAMES)]


def test_links_among_folders_are_not_followed(test_dir):
    (test_dir / "dog" / "loop").symlink_to(test_dir)
    assert len(read_labels(test_dir, "folders", NAMES)) == 5


def test_names_that_are_not_utf8_are_spelled_as_in_the_predictions(tmp_path, test_dir):
    (test_dir / "dog" / os.fsdecode(b"caf\xe9.jpg")).touch()
    assert read_labels(test_dir, "folders", NAMES)["dog/caf\\xe9.jpg"] == 1
    assert read_labels(test_dir, labels_file(tmp_path, "path,label\ndog/caf\\xe9.jpg,dog\n"), NAMES) == {"dog/caf\\xe9.jpg": 1}


def test_a_folder_of_no_class_is_an_error(test_dir):
    (test_dir / "wolf").mkdir()
    with pytest.raises(UserError, match="wolf"):
        read_labels(test_dir, "folders", NAMES)


def test_a_csv_file(tmp_path, test_dir):
    text = (
        "\ufeffid,label, path \r\n1,Tabby Cat,./Tabby_Cat/a.jpg\r\n\r\n2,dog,dog//c.jpg\r\n3,C++,'=x.jpg\r\n".replace("'=x.jpg", "dog/=x.jpg")
        + '4,dog,"dog/a, b\n\u05d0.jpg"\r\n5,dog,dog/c.jpg\r\n'
    )
    expected = {"Tabby_Cat/a.jpg": 0, "dog/c.jpg": 1, "dog/=x.jpg": 2, "dog/a, b\\n\u05d0.jpg": 1}
    assert read_labels(test_dir, labels_file(tmp_path, text), NAMES) == expected


def test_paths_and_labels_copied_from_predictions_carry_apostrophes(tmp_path, test_dir):
    (test_dir / "=top.jpg").touch()
    (test_dir / "'=raw.jpg").touch()
    path = labels_file(tmp_path, "path,label\n'=top.jpg,'=emu\n'=raw.jpg,dog\n")
    assert read_labels(test_dir, path, ["=emu", "dog"]) == {"=top.jpg": 0, "'=raw.jpg": 1}


def test_all_slips_of_a_file_are_named_at_once(tmp_path, test_dir):
    """Who mends a list by hand mends all of it; of very many a few and their number."""
    several = [f"dog/c.jpg,dgo{i}" for i in range(7)]
    with pytest.raises(UserError) as caught:
        read_labels(test_dir, labels_file(tmp_path, "\n".join(["path,label", *several, ""])), NAMES)
    assert [f"line {i}: unknown label" in str(caught.value) for i in range(2, 9)] == [True] * 5 + [False] * 2
    assert "; and 2 more" in str(caught.value)
    torn = "path,label\na,b,dog\ndog/c.jpg,dog\nc,d,dog\n"
    with pytest.raises(UserError, match=r"line 2: expected 2 cells, got 3; line 4: expected 2 cells, got 3; quote cells that hold commas$"):
        read_labels(test_dir, labels_file(tmp_path, torn), NAMES)
    both = "path,label\ndog/c.jpg,dog\ndog/c.jpg,C++\nTabby_Cat/a.jpg,dog\nTabby_Cat/a.jpg,C++\n"
    with pytest.raises(UserError, match=r"line 3: 'dog/c.jpg' is .* in line 2; line 5: 'Tabby_Cat/a.jpg' is .* in line 4; keep one of the two$"):
        read_labels(test_dir, labels_file(tmp_path, both), NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the column path; .*found nothing"),
        ("path|label\ndog/c.jpg|dog\n", r"lacks the column path; its first line must be path,label, .*found 'path\|label'"),
        ("path,class\ndog/c.jpg,dog\n", "lacks the column label"),
        ("path,label\n", "has no rows"),
        ("path,label\ndog/c.jpg\n", "line 2: expected 2 cells, got 1"),
        ("path,label\ndog/a, b.jpg,dog\n", "line 2: expected 2 cells, got 3; quote cells"),
        ("path,label\ndog/c.jpg,dgo\n", r"line 2: unknown label 'dgo'; did you mean 'dog'\?$"),
        (
            "path,label\ndog/c.jpg,dog\ndog/c.jpg,zebra\ndog/c.jpg,emu\n",
            r"line 3: unknown label 'zebra'; line 4: unknown label .*; classes are: ",
        ),
        ("path,label\ndog/none.jpg,dog\n", "line 2: there is no file 'dog/none.jpg'"),
        ("path,label\ndog,dog\n", "line 2: there is no file 'dog'"),
        ("path,label\n,dog\n", "line 2: there is no file ''"),
        ("path,label\n" + "x" * 5000 + ",dog\n", "line 2: there is no file"),
        (
            "path,label\ndog/c.jpg,dog\nTabby_Cat/a.jpg,dog\n./dog/c.jpg,C\\+\\+\n".replace("\\", ""),
            "line 4: 'dog/c.jpg' is 'C\\+\\+' here but 'dog' in line 2",
        ),
        ("path,label\n../labels.csv,dog\n", "line 2: '../labels.csv' leaves the folder of the images"),
        ("path,label\ndog/../../labels.csv,dog\n", "leaves the folder of the images"),
        ("path,label\n/etc/passwd,dog\n", "line 2: '/etc/passwd' leaves the folder of the images"),
        (b"path,label\ndog/\xc3\xff\x81.jpg,dog\n", "not UTF-8"),
        ('path,label\n"dog/c.jpg,dog\n', "save it as comma-separated"),
    ],
)
def test_errors_name_the_file_the_line_and_the_remedy(tmp_path, test_dir, text, message):
    path = labels_file(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        read_labels(test_dir, path, NAMES)
    assert "labels.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path, test_dir):
    with pytest.raises(UserError, match=r"none\.csv.* does not exist"):
        read_labels(test_dir, tmp_path / "none.csv", NAMES)
    with pytest.raises(UserError, match="is not a folder"):
        read_labels(tmp_path / "nowhere", "folders", NAMES)


def test_empty_class_folders(tmp_path):
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match="hold no files"):
        read_labels(tmp_path, "folders", NAMES)
