from __future__ import annotations

import csv
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelens.core.schemas import PREDICTION_COLUMNS, STATUSES
from finelens.errors import UserError
from finelens.storage.predictions import (
    PredictionRow,
    read_predictions,
    rows_from_logits,
    rows_from_probabilities,
    softmax,
    unescape_cell,
    with_answers,
    write_predictions,
)

HOSTILE = [
    "=cmd|'/C calc'!A0",
    "+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "'=1",
    "''=1",
    "'quoted'",
    'a"b',
    "a\nb",
    "a\r\nb",
    "a,b;c",
    "שלום עולם",
    "\u202egpj.exe",
    " spaced ",
    "</script>",
    "😀",
    "'",
    "#1",
]


@dataclass
class Record:
    name: str
    status: str = "ok"
    reason: str = ""
    index: int | None = None


def test_hostile_names_come_back_as_they_were(tmp_path):
    rows = [PredictionRow(n, n, 0.5, 0.25, ((n, 0.5), ("b", 0.25)), n, "ok", n) for n in HOSTILE]
    write_predictions(tmp_path / "p.csv", rows)
    assert read_predictions(tmp_path / "p.csv") == rows


def test_no_cell_starts_a_formula(tmp_path):
    write_predictions(tmp_path / "p.csv", [PredictionRow(n, n, 0.5, 0.5, ((n, 0.5),), n, "ok", n) for n in HOSTILE])
    with open(tmp_path / "p.csv", encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert len(cells) == 12 * (len(HOSTILE) + 1)
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r")]
    assert "'=cmd|'/C calc'!A0" in cells


text = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"))
name = text.filter(bool)
share = st.floats(0, 1)
row = st.builds(
    PredictionRow,
    path=text,
    label=st.none() | name,
    probability=st.none() | share,
    margin=st.none() | share,
    top5=st.lists(st.tuples(name, share), max_size=5).map(tuple),
    zero_shot_class=st.none() | name,
    status=st.sampled_from(STATUSES),
    reason=text | st.sampled_from(HOSTILE),
)


@given(st.lists(row, max_size=6))
def test_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("p") / "p.csv"
    write_predictions(path, rows)
    assert read_predictions(path) == rows


def test_the_file_is_what_the_schema_says(tmp_path):
    path = tmp_path / "p.csv"
    write_predictions(
        path,
        [
            PredictionRow("a/b.jpg", "cat", 0.75, 0.5, (("cat", 0.75), ("dog", 0.25)), "dog", none_of_these=0.125),
            PredictionRow("c", status="corrupt", reason="cut"),
        ],
    )
    expected = (
        "path,class,probability,margin,top5,zero_shot_class,status,reason,answered,second_class,second_probability,none_of_these\r\n"
        'a/b.jpg,cat,0.75,0.5,"[[""cat"", 0.75], [""dog"", 0.25]]",dog,ok,,,dog,0.25,0.125\r\n'
        "c,,,,,,corrupt,cut,,,,\r\n"
    )
    assert path.read_bytes().decode() == expected


def test_surrogates_and_nulls_do_not_stop_the_table(tmp_path):
    write_predictions(tmp_path / "p.csv", [PredictionRow("caf\udce9.jpg", "a\0b", 1.0, 1.0, (("a\udc80", 1.0),))])
    (read,) = read_predictions(tmp_path / "p.csv")
    assert read.path == "caf\\udce9.jpg"
    assert read.label == "a\N{REPLACEMENT CHARACTER}b"
    assert read.top5 == (("a\udc80", 1.0),)


def test_n_files_in_n_rows_out_in_the_order_of_the_records():
    records = [
        Record("a/x.jpg", "ok", "16-bit scaled", index=2),
        Record("bad.jpg", "corrupt", "truncated"),
        Record("gone.jpg", "vanished", "deleted during the run", index=3),
        Record("[10]", index=1),
        Record("[2]", index=0),
    ]
    probabilities = [[0.1, 0.7, 0.2], [0.5, 0.25, 0.25], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    rows = rows_from_probabilities(records, ["cat", "dog", "=emu"], probabilities, [0, 1, 2, 0])
    assert rows == [
        PredictionRow("a/x.jpg", "=emu", 1.0, 1.0, (("=emu", 1.0), ("cat", 0.0), ("dog", 0.0)), "=emu", "ok", "16-bit scaled"),
        PredictionRow("bad.jpg", status="corrupt", reason="truncated"),
        PredictionRow("gone.jpg", status="vanished", reason="deleted during the run"),
        PredictionRow("[10]", "cat", 0.5, 0.25, (("cat", 0.5), ("dog", 0.25), ("=emu", 0.25)), "dog"),
        PredictionRow("[2]", "dog", 0.7, 0.5, (("dog", 0.7), ("=emu", 0.2), ("cat", 0.1)), "cat"),
    ]


def test_logits_become_probabilities():
    logits = np.array([[0.0, np.log(3.0), -1e4], [1000.0, 1000.0, 999.0]])
    p = softmax(logits)
    np.testing.assert_allclose(p[0], [0.25, 0.75, 0], atol=1e-15)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    first, second = rows_from_logits([Record("a", index=0), Record("b", index=1)], ["x", "y", "z"], logits.astype(np.float32))
    assert (first.label, first.probability, first.margin, first.zero_shot_class) == ("y", 0.75, 0.5, None)
    assert (second.label, second.margin) == ("x", 0.0)


def test_one_class_and_many_classes():
    (row,) = rows_from_logits([Record("a", index=0)], ["only"], [[3.0]])
    assert (row.probability, row.margin, row.top5) == (1.0, 1.0, (("only", 1.0),))
    (row,) = rows_from_logits([Record("a", index=0)], [str(i) for i in range(100)], [np.arange(100.0)])
    assert [n for n, _ in row.top5] == ["99", "98", "97", "96", "95"]


def test_of_equal_classes_the_first_wins():
    (row,) = rows_from_logits([Record("a", index=0)], [str(i) for i in range(100)], [np.arange(100) % 2])
    assert [n for n, _ in row.top5] == ["1", "3", "5", "7", "9"]


def test_scores_that_are_not_finite_are_refused_by_name():
    with pytest.raises(UserError, match=r"scores of 1 image\(s\) are not finite, first b.jpg"):
        rows_from_logits([Record("a.jpg", index=0), Record("b.jpg", index=1)], ["x", "y"], [[1.0, 2.0], [np.nan, 1.0]])


def test_shapes_that_disagree_are_the_programmers_error():
    with pytest.raises(ValueError, match="do not fit 3 classes"):
        rows_from_probabilities([], ["a", "b", "c"], [[0.5, 0.5]])


def test_empty_table(tmp_path):
    write_predictions(tmp_path / "p.csv", rows_from_probabilities([], ["a"], np.zeros((0, 1))))
    assert read_predictions(tmp_path / "p.csv") == []


HEAD = ",".join(PREDICTION_COLUMNS) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected the columns path, class"),
        (b"path,label\n", "expected the columns"),
        ((HEAD + "a,b\n").encode(), "line 2: expected 12 cells, got 2"),
        ((HEAD + "a,,,,,,fine,,,,,\n").encode(), "line 2: unknown status 'fine'"),
        ((HEAD + "a,c,high,,,,ok,,,,,\n").encode(), "line 2: could not convert string to float: 'high'"),
        ((HEAD + "a,c,1,1,[[1 2]],,ok,,,,,\n").encode(), "line 2"),
        ((HEAD + 'a,c,1,1,"[[1, 2]]",,ok,,,,,\n').encode(), "line 2: top5 names a class 1"),
        ((HEAD + "a,c,1,1,5,,ok,,,,,\n").encode(), "line 2"),
        ((HEAD + "a,c,1,1,,,ok,,maybe,,,\n").encode(), "line 2: answered is yes, copy or empty, got 'maybe'"),
        ((HEAD + "a,c,1,1,,,ok,,,,,much\n").encode(), "line 2: could not convert string to float: 'much'"),
        (HEAD.encode() + b"\xff,,,,,,ok,\n", "not a CSV file in UTF-8"),
        ((HEAD + '"a,c').encode(), "not a CSV file"),
    ],
)
def test_damaged_tables_are_named(tmp_path, content, message):
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_predictions(tmp_path / "p.csv")
    assert "p.csv" in str(caught.value)


def test_missing_table_and_byte_order_mark(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_predictions(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_bytes(b"\xef\xbb\xbf" + HEAD.encode() + b"a,,,,,,corrupt,x,,,,\n")
    assert read_predictions(tmp_path / "p.csv") == [PredictionRow("a", status="corrupt", reason="x")]


def test_plain_apostrophes_are_left_alone():
    assert unescape_cell("'tis") == "'tis"
    assert unescape_cell("'=x") == "=x"
    assert unescape_cell("''=x") == "'=x"


def test_the_person_is_right(tmp_path):
    rows = [PredictionRow(name, "a", 0.5, 0.25, (("a", 0.5), ("b", 0.25)), "b") for name in "xyz"] + [PredictionRow("w", status="corrupt")]
    found = with_answers(rows, {"x": "b", "y": "", "w": "a"}, {"z": "a", "x": "c"})
    assert found[0] == PredictionRow("x", "b", 1.0, 1.0, (("b", 1.0),), "b", answered="yes", none_of_these=0.0)
    assert found[1] == PredictionRow("y", zero_shot_class="b", answered="yes", none_of_these=1.0)
    # Of a copy they were not asked, and an answer of its own goes before.
    assert found[2] == PredictionRow("z", "a", 1.0, 1.0, (("a", 1.0),), "b", answered="copy", none_of_these=0.0)
    assert found[3:] == rows[3:]
    write_predictions(tmp_path / "p.csv", found)
    assert read_predictions(tmp_path / "p.csv") == found


def test_files_of_before_have_no_answers(tmp_path):
    (tmp_path / "p.csv").write_text("path,class,probability,margin,top5,zero_shot_class,status,reason\nx,a,0.5,0.1,,b,ok,\n")
    assert read_predictions(tmp_path / "p.csv") == [PredictionRow("x", "a", 0.5, 0.1, (), "b")]


def test_files_of_schema_2_have_no_columns_of_the_second_class(tmp_path):
    head = "path,class,probability,margin,top5,zero_shot_class,status,reason,answered"
    (tmp_path / "p.csv").write_text(head + '\nx,a,0.5,0.1,"[[""a"", 0.5], [""b"", 0.4]]",b,ok,,yes\n')
    assert read_predictions(tmp_path / "p.csv") == [PredictionRow("x", "a", 0.5, 0.1, (("a", 0.5), ("b", 0.4)), "b", answered="yes")]


def test_files_of_schema_3_do_not_say_who_belongs_to_no_class(tmp_path):
    head = "path,class,probability,margin,top5,zero_shot_class,status,reason,answered,second_class,second_probability"
    (tmp_path / "p.csv").write_text(head + '\nx,a,0.5,0.1,"[[""a"", 0.5], [""b"", 0.4]]",b,ok,,,b,0.4\n')
    assert read_predictions(tmp_path / "p.csv") == [PredictionRow("x", "a", 0.5, 0.1, (("a", 0.5), ("b", 0.4)), "b")]


def test_a_spreadsheet_finds_the_second_class_in_columns_of_its_own(tmp_path):
    rows = [PredictionRow("x", "a", 0.5, 0.1, (("a", 0.5), ("=b", 0.4), ("c", 0.1))), PredictionRow("y", "a", 1.0, 1.0, (("a", 1.0),))]
    write_predictions(tmp_path / "p.csv", rows)
    with (tmp_path / "p.csv").open(newline="") as file:
        found = [(line["second_class"], line["second_probability"]) for line in csv.DictReader(file)]
    assert found == [("'=b", "0.4"), ("", "")]
