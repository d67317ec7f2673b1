"""Tables as spreadsheets of any country save them, wherever a table that a person wrote is read."""

from __future__ import annotations

import csv
import io
import re

import pytest

from finelens.classes.captions import read_captions
from finelens.classes.groups import read_groups
from finelens.classes.hand_tables import read_table, spreadsheet_text
from finelens.classes.hints import How, how_given, with_new_names
from finelens.classes.labels import Told, read_labels, read_rows
from finelens.classes.merging import merge, merge_hints
from finelens.classes.names import read_class_file
from finelens.classes.taxonomy import read_class_list
from finelens.errors import UserError
from finelens.feature_store.support import METADATA, _from_metadata
from finelens.images.discover import ImageFile
from finelens.intake.recognise import read_contents
from finelens.reporting.review.answers import read_answers
from finelens.reporting.review.order import Look
from finelens.reporting.review.worth import questions_csv
from finelens.runs.together import _of_file
from finelens.storage.predictions import PredictionRow
from tests.toy import QUIET

# Marks and encodings that Excel, LibreOffice, Numbers and editors write.
FORMS = [(mark, encoding) for mark in (",", ";", "\t") for encoding in ("utf-8", "utf-8-sig", "cp1252", "utf-16")]
NAMES = ("Köter", "chien d’été", "señal, azul")


def saved(path, rows, mark=",", encoding="utf-8", end="\r\n", told=False):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=mark, lineterminator=end).writerows(rows)
    path.write_bytes((f"sep={mark}{end}" * told + text.getvalue()).encode(encoding))
    return path


@pytest.mark.parametrize(("mark", "encoding"), FORMS)
@pytest.mark.parametrize("told", [False, True])
def test_answers_and_labels_are_read_in_every_form(tmp_path, mark, encoding, told):
    """``adapt --hints``, ``merge-hints``, ``evaluate --labels``, and what the review goes on from."""
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"é{i}.png").touch()
    rows = [("path", "label", "source", "by", "group"), *((f"é{i}.png", NAMES[i], "group", "Zoë", "é0.png") for i in range(3))]
    file = saved(tmp_path / "hints.csv", rows, mark, encoding, told=told)
    expected = {f"é{i}.png": i for i in range(3)}
    assert read_labels(tmp_path / "photos", file, NAMES) == expected
    assert with_new_names(file, NAMES[:1]) == [NAMES[0], *sorted(NAMES[1:])]
    assert list(read_answers(file).items()) == [(f"é{i}.png", NAMES[i]) for i in range(3)]
    assert how_given(file) == {f"é{i}.png": How("group", "Zoë", "é0.png") for i in range(3)}
    assert merge([file]).names == sorted(NAMES, key=str.casefold)
    # The lines of the file are told, with the one that names the separator.
    assert [line for line, _, _ in read_rows(file, "hints file")] == [2 + told, 3 + told, 4 + told]


@pytest.mark.parametrize(("mark", "encoding"), FORMS)
def test_other_tables_are_read_in_every_form(tmp_path, mark, encoding):
    """``--groups``, ``--group-by``, captions, a support set's metadata, ``--classes`` and ``--in``."""
    names = ["é0.png", "é1.png"]
    file = saved(tmp_path / "groups.csv", [("path", "site"), *zip(names, NAMES, strict=False)], mark, encoding)
    assert read_groups(file, names, tmp_path)[0] == {"site": dict(zip(names, NAMES, strict=False))}
    file = saved(tmp_path / "group_by.csv", [("path", "group"), *((name, NAMES[0]) for name in names)], mark, encoding)
    assert _of_file(file, names) == [NAMES[0]] * 2
    for name in names:
        (tmp_path / name).touch()
    file = saved(tmp_path / "pairs.csv", [("Image", "Text"), *zip(names, NAMES, strict=False)], mark, encoding)
    assert read_captions(file, None).texts == NAMES[:2]
    file = saved(tmp_path / METADATA[0], [("file", "label", "caption"), ("é0.png", NAMES[1], "a  dog")], mark, encoding)
    found = _from_metadata(file, {"é0.png": ImageFile("é0.png", "é0.png")}, NAMES)
    assert [(row.label, row.caption) for row in found.values()] == [(1, "a dog")]
    file = saved(tmp_path / "classes.csv", [("id", "name"), *enumerate(NAMES)], mark, encoding)
    assert read_class_file(file) == list(NAMES)
    file = saved(tmp_path / "taxa.csv", [("name", "family"), *((name, "été") for name in NAMES)], mark, encoding)
    assert read_class_list(file)[0] == list(NAMES)
    if encoding.startswith("utf-8"):
        file = saved(tmp_path / "metadata.csv", [("file_name", "label"), *zip(names, NAMES, strict=False)], mark, encoding)
        assert read_contents(file, tmp_path).classes == list(NAMES[:2])


def test_the_separator_is_that_of_the_first_line(tmp_path):
    """Semicolons in cells, as ``merge-hints`` writes them, and commas in names are cells of their own."""
    file = saved(tmp_path / "a.csv", [("path", "label", "by"), ("a.png", "fox, red", "x.csv;y.csv")])
    assert read_table(file, "file", ("path", "label")).rows == [(2, ["a.png", "fox, red", "x.csv;y.csv"])]
    (tmp_path / "b.csv").write_text("path;label\na.png;fox, red\n")
    assert read_table(tmp_path / "b.csv", "file", ("path", "label")).rows == [(2, ["a.png", "fox, red"])]
    (tmp_path / "c.csv").write_text("path|label\na.png|fox\n")
    with pytest.raises(UserError, match=r"lacks the column path.*separated by commas, semicolons or tabs, found 'path\|label'"):
        read_rows(tmp_path / "c.csv", "hints file")
    (tmp_path / "d.csv").write_text('path;label\n"a.png;fox\n')
    with pytest.raises(UserError, match="save it as comma-separated values"):
        read_rows(tmp_path / "d.csv", "hints file")


@pytest.mark.parametrize(
    "data",
    [
        "собака;кошка".encode("cp1251"),
        "σκύλος;γάτα".encode("cp1253"),
        "pes;žluťoučký".encode("cp1250"),
        "犬;猫".encode("shift-jis"),
        "狗狗;猫咪".encode("gbk"),
        # Damaged UTF-8.
        "Köter, Schäferhund, ".encode() + b"\xff",
        "größer".encode("utf-16")[:-1],
    ],
)
def test_other_code_pages_are_refused_and_not_read_as_other_letters(tmp_path, data):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(UserError, match="is not UTF-8"):
        spreadsheet_text(tmp_path / "a.csv", "class file")


@pytest.mark.parametrize("text", ["Köter", "été", "façade – école", "“Ærø”", "Å", "Öl;Äpfel", "crème brûlée", "smørrebrød", "piñata", "cœur’s"])
def test_west_european_words_are_read(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(text.encode("cp1252"))
    assert spreadsheet_text(tmp_path / "a.csv", "class file") == text


def test_what_a_person_opens_in_a_spreadsheet_has_a_mark_where_it_needs_one(tmp_path):
    """Without it Excel shows other letters; every reader takes it."""
    looks = [Look(PredictionRow("ö.png", "Köter"), "why", 1.0)]
    text = questions_csv(looks, {}, {})
    assert text.startswith("\ufeffpath,label,why,expected")
    assert not questions_csv([], {"a.png": "fox"}, {}).startswith("\ufeff")
    (tmp_path / "a.csv").write_text(re.sub("ö.png,,", "ö.png,Köter,", text), encoding="utf-8")
    assert read_answers(tmp_path / "a.csv") == {"ö.png": "Köter"}
    merge_hints([tmp_path / "a.csv"], tmp_path / "out.csv", console=QUIET)
    # Written over its own earlier file, which begins with the mark.
    merge_hints([tmp_path / "a.csv"], tmp_path / "out.csv", console=QUIET)
    assert (tmp_path / "out.csv").read_bytes().startswith(b"\xef\xbb\xbfpath,label,by")
    assert read_answers(tmp_path / "out.csv") == {"ö.png": "Köter"}
    assert read_rows(Told("x", {"a": "b"}), "hints file") == [(1, "a", "b")]
