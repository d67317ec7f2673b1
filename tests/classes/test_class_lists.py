"""Class lists that other tools wrote: read as they are meant, or refused in one line with the remedy."""

from __future__ import annotations

import json
import os
import re

import pytest

from finelens.classes.names import normalise, read_class_file
from finelens.errors import UserError

PETS = ["cat", "dog", "car"]
GUIDS = [f"{i:08x}-0000-4000-8000-{i:012x}" for i in range(3)]


def written(tmp_path, text: str, name: str = "list.csv"):
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return tmp_path / name


@pytest.mark.parametrize(
    "text",
    [
        "cat\ndog\ncar\n",
        "species\ncat\ndog\ncar\n",
        "\ufeffClass Name\r\ncat\r\ndog\r\ncar\r\n",
        '"cat"\n"dog"\n"car"\n',
        "id,name\n0,cat\n1,dog\n2,car\n",
        "name,id\ncat,7\ndog,3\ncar,5\n",
        ",label\n0,cat\n1,dog\n2,car\n",
        "label,name\n0,cat\n1,dog\n2,car\n",
        "class,label\n0,cat\n1,dog\n2,car\n",
        "cat,0\ndog,1\ncar,2\n",
        "n00000001,cat\nn00000002,dog\nn00000003,car\n",
        "".join(f"{guid},{name}\n" for guid, name in zip(GUIDS, PETS, strict=True)),
        "id;name\n0;cat\n1;dog\n2;car\n",
        "sep=;\n0;cat\n1;dog\n2;car\n",
        "0\tcat\n1\tdog\n2\tcar\n",
        "# made by hand\ncat\n\ndog\n,\ncar\n".replace(",\n", ""),
        "name,count,note\ncat,3,\ndog,4,tame\ncar,5,\n",
    ],
)
def test_tables_are_read_as_tables(tmp_path, text):
    assert read_class_file(written(tmp_path, text)) == PETS
    assert read_class_file(written(tmp_path, text, "list.TSV")) == PETS


def test_names_with_commas_quotes_and_formulas_come_back(tmp_path):
    text = '"lemur, ring-tailed"\n"fox ""red"""\ncar\n\'=cat\n'
    assert read_class_file(written(tmp_path, text)) == ["lemur, ring-tailed", 'fox "red"', "car", "=cat"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat\nlemur, ring-tailed\ncar\n", "line 2: it has another number of cells than the first; quote names that hold commas"),
        ("cat,small\ndog,big\ncar,big\n", "2 columns and does not say which holds the names"),
        ("english,latin\ncat,felis\ndog,canis\n", "call it name in the first line"),
        ('"cat\ndog\n', "save it as comma-separated values"),
        ("", "there are no class names"),
        ("id,name\n0,cat\n1,Cat\n", "line 2"),
    ],
)
def test_tables_that_do_not_say_what_is_a_name_are_refused(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        read_class_file(written(tmp_path, text))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["species", *PETS], "header of a table: remove it"),
        (["Name", *PETS], "header of a table"),
        ([f"{i} {name}" for i, name in enumerate(PETS)], "every line has a number of its own"),
        ([f"{i}. {name}" for i, name in enumerate(PETS, 1)], "every line has a number of its own"),
        ([f"{i}: {name}" for i, name in enumerate(PETS)], "every line has a number of its own"),
        ([f"{5 * i + 2},{name}" for i, name in enumerate(PETS)], "every line has a number of its own"),
        ([f"{name}, {i}" for i, name in enumerate(PETS)], "every line has a number of its own"),
        (GUIDS, "every line holds a GUID"),
        ([f"{name} {guid}" for name, guid in zip(PETS, GUIDS, strict=True)], "every line holds a GUID"),
        ([f"n0144076{i} {name}" for i, name in enumerate(PETS)], "every line begins with a WordNet number"),
        (["n01440764", "n01443537"], "every line begins with a WordNet number"),
        ([f"{name};{name[::-1]}" for name in PETS], "every line holds several cells"),
        ([f"{name} | {name[::-1]}" for name in PETS], "every line holds several cells"),
        ([f'"{name}"' for name in PETS], "every line stands in quotation marks"),
        ([f"'{name}'," for name in PETS], "every line stands in quotation marks"),
        ([f"{name}," for name in PETS], "every line ends with a comma"),
        ([f"{name}," for name in PETS[:2]] + ["car"], "every line ends with a comma"),
        (["names:", *(f"  {i}: {name}" for i, name in enumerate(PETS))], "this is YAML"),
        ([f"- {name}" for name in PETS], "this is YAML"),
        (["names:", *(f"  - {name}" for name in PETS)], "this is YAML"),
        (["[", *(f'"{name}",' for name in PETS), "]"], "list of a programming language"),
        (["{", '"0": "cat",', '"1": "dog"', "}"], "list of a programming language"),
    ],
)
def test_lines_that_are_no_plain_names_are_refused_with_the_remedy(tmp_path, lines, words):
    path = written(tmp_path, "\n".join(lines) + "\n", "list.txt")
    with pytest.raises(UserError, match=words) as caught:
        read_class_file(path)
    assert "list.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "name", "remedy"),
    [
        # What the file would be read as under the name of a table is said, and nothing else.
        (["1. pug", "2. cat"], "list.csv", "remove the numbers; if they are names"),
        (["1. pug", "2. cat"], "list.txt", "remove the numbers; if they are names"),
        (["1) pug", "2) cat"], "list.txt", "remove the numbers; if they are names"),
        (["1;pug", "2;cat"], "list.txt", "remove the numbers, or call the file .csv; if"),
        (["pug, 0", "cat, 1"], "list.txt", "remove the numbers, or call the file .csv; if"),
        (["pug;Mops", "cat;Katze"], "list.txt", "keep the names alone, or call the file .csv and begin it with the line name;note; if"),
        (["name;german", "pug;Mops", "cat;Katze"], "list.txt", "keep the names alone, or call the file .csv; if"),
        (
            ["pug;Mops", "cat;Katze"],
            "list.csv",
            "2 columns and does not say which holds the names: keep that one only, or .* first line, as in name;note$",
        ),
        (["pug | Mops", "cat | Katze"], "list.csv", "keep the names alone; if they are names"),
        (["pug | Mops", "cat | Katze"], "list.txt", "keep the names alone; if they are names"),
        (['"pug"', '"cat"'], "list.txt", "remove them, or call the file .csv; if"),
        (["'pug'", "'cat'"], "list.txt", "remove them; if"),
        (["'pug'", "'cat'"], "list.csv", "remove them; if"),
        (["name", "pug", "cat"], "list.txt", "remove it, or call the file .csv; if"),
        (["name", "label", "pug"], "list.csv", "remove it; if"),
    ],
)
def test_the_remedy_is_one_that_helps(tmp_path, lines, name, remedy):
    path = written(tmp_path, "\n".join(lines) + "\n", name)
    with pytest.raises(UserError, match=remedy) as caught:
        read_class_file(path)
    if found := re.search("begin it with the line ([^ ;]+;[^ ;]+)", str(caught.value)):
        path = written(tmp_path, "\n".join([found[1], *lines]) + "\n")
    elif "call the file .csv" in str(caught.value):
        path = written(tmp_path, "\n".join(lines) + "\n")
    else:
        return
    assert read_class_file(path) == ["pug", "cat"]


@pytest.mark.parametrize(
    "names",
    [
        ["1", "2", "3", "10"],
        [str(digit) for digit in range(10)],
        ["speed limit 20", "speed limit 30"],
        ["level 1", "level 2"],
        ["5 euro", "10 euro", "20 euro"],
        ["Panthera tigris (Linnaeus, 1758)", "Canis lupus Linnaeus, 1758"],
        ["C++", "C#", "a/b", "..", "{x}", "%s"],
        ['7-series "M3"', '3-series "M5"'],
        ["rock & roll", "salt; pepper"],
        ["n1 road", "n2 road"],
        ["- 5", "5"],
        ["Category", "cat"][1:],
        ["cat's eye", "dog's tail"],
        ["2CV", "4CV", "5CV"],
    ],
)
def test_plain_names_that_only_look_odd_stay(tmp_path, names):
    assert read_class_file(written(tmp_path, "\n".join(names) + "\n", "list.txt")) == names


def test_the_way_out_leads_out(tmp_path):
    names = ["1 room", "2 rooms", "3 rooms"]
    with pytest.raises(UserError, match=r"write them as a list in a \.json file"):
        read_class_file(written(tmp_path, "\n".join(names), "list.txt"))
    assert read_class_file(written(tmp_path, json.dumps(names), "list.json")) == names


def test_names_that_differ_in_a_sign_are_two_and_those_that_differ_in_case_have_a_way_out(tmp_path):
    for names in (["temp -5", "temp 5"], ["-5", "5"], ["at -5 to -3", "at 5 to 3"], ["Rh+", "Rh-"]):
        assert read_class_file(written(tmp_path, "\n".join(names), "list.txt")) == names
    # Hyphens between words are blanks as before, and so is one before a word.
    assert normalise("forget-me-not") == normalise("Forget me not")
    assert normalise("spitz -medium") == normalise("spitz medium")
    for names in (["A", "a"], ["Maße", "Masse"]):
        with pytest.raises(UserError, match=r"keep one of each; if they are different classes, write what tells them apart into the names"):
            read_class_file(written(tmp_path, "\n".join(names), "list.txt"))
    assert read_class_file(written(tmp_path, "capital A\nsmall a\n", "list.txt")) == ["capital A", "small a"]


def test_a_pipe_that_was_read_before_is_told_from_an_empty_file():
    """As of ``--classes <(cut -f 1 table)``: the check before the work takes all that the pipe holds."""
    out_of, into = os.pipe()
    os.write(into, b"cat\ndog\n")
    os.close(into)
    pipe = f"/dev/fd/{out_of}"
    try:
        assert read_class_file(pipe) == ["cat", "dog"]
        with pytest.raises(UserError, match="is a pipe that holds nothing more, and it is read more than once; give a file"):
            read_class_file(pipe)
    finally:
        os.close(out_of)
