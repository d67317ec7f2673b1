from __future__ import annotations

import json
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelens.classes.names import check_names, folder_classes, match, name_warnings, normalise, read_class_file
from finelens.core.options import nearest
from finelens.errors import UserError

ODD_NAMES = [
    "C++",
    "C#",
    "c",
    "#1",
    "rock & roll",
    '7-series "M3"',
    "a/b",
    "..",
    "{x}",
    "{}",
    "%s",
    "👩‍🚒",
    "❤️",
    "柴犬",
    "قط سيامي",
    "-5",
    "5",
    "=cmd|x",
    "<b>",
]


def write(path, content: str | bytes):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def check_message(error: UserError) -> None:
    """One line that can be printed."""
    message = str(error)
    assert message.splitlines() == [message]
    message.encode()


def refused(call, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert message.splitlines() == [message]
    for word in words:
        assert word in message
    return message


def test_bom_crlf_blank_lines_and_comments_leave_the_names(tmp_path):
    path = write(tmp_path / "c.txt", b"\xef\xbb\xbf# animals\r\ncat\r\n\r\n  dog \r\n#\r\n## more\r\nC#\r\n#1\r\n\\# 5\rbird")
    assert read_class_file(path) == ["cat", "dog", "C#", "#1", "# 5", "bird"]


def test_odd_names_survive_text_and_json_unchanged(tmp_path):
    assert read_class_file(write(tmp_path / "c.txt", "\n".join(ODD_NAMES))) == ODD_NAMES
    assert read_class_file(write(tmp_path / "c.JSON", json.dumps(ODD_NAMES))) == ODD_NAMES
    entries = {"set": "x", "classes": [{"dir": str(i), "name": name} for i, name in enumerate(ODD_NAMES)]}
    assert read_class_file(write(tmp_path / "classes.json", json.dumps(entries))) == ODD_NAMES
    assert len({normalise(name) for name in ODD_NAMES}) == len(ODD_NAMES)


def test_unreadable_class_files_are_named_with_the_reason(tmp_path):
    refused(lambda: read_class_file(tmp_path / "none.txt"), "none.txt", "does not exist")
    refused(lambda: read_class_file(tmp_path), "folder")
    refused(lambda: read_class_file("a\0b"), "cannot be read")
    refused(lambda: read_class_file(write(tmp_path / "l.txt", b"cat\n\xe9t\xe9")), "byte offset 4", "0xe9")
    refused(lambda: read_class_file(write(tmp_path / "u.txt", "cat".encode("utf-16"))), "byte offset 0", "UTF-16")
    refused(lambda: read_class_file(write(tmp_path / "e.txt", "# only\n\n")), "no class names")
    refused(lambda: read_class_file(write(tmp_path / "e.json", "[]")), "no class names")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("[1", "line 1, column 3"),
        ("[" * 200_000, "nested too deeply"),
        ('["cat", 3]', "entry 2"),
        ('{"a": 1}', "JSON list of names"),
        ('{"classes": ["cat"]}', "entry 1"),
        ('{"classes": [], "classes": []}', "repeats the key 'classes'"),
        ('["\\ud800"]', "U+D800"),
        ("9" * 5000, "not valid JSON"),
    ],
)
def test_malformed_json_class_files_are_refused(tmp_path, content, word):
    refused(lambda: read_class_file(write(tmp_path / "c.json", content)), "c.json", word)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], ["no class names"]),
        ("cat", ["list of names"]),
        (["cat", None], ["entry 2", "not text"]),
        (["x" * 201], ["201", "200"]),
        (["a\tb"], ["U+0009"]),
        (["a\x00b"], ["U+0000"]),
        (["a\u2028b"], ["U+2028"]),
        (["cat", "\u200b"], ["entry 2", "visible"]),
        (["Cat", "dog", "cat"], ["'Cat' (entry 1), 'cat' (entry 3)"]),
        (["a_b", "a-B", "A  b"], ["(entry 1)", "(entry 3)"]),
        (["caf\u00e9", "cafe\u0301"], ["entry 2"]),
    ],
)
def test_names_that_cannot_be_used_are_refused(names, words):
    refused(lambda: check_names(names), *words)


def test_duplicates_are_listed_with_their_line_numbers(tmp_path):
    path = write(tmp_path / "c.txt", "# list\nRed Fox\ndog\n\nred_fox\n")
    refused(lambda: read_class_file(path), "'Red Fox' (line 2), 'red_fox' (line 5)")


def test_single_class_and_punctuation_twins_are_allowed_with_a_warning():
    assert check_names(["cat"]) == ["cat"]
    assert ["only one class" in line for line in name_warnings(["cat"])] == [True]
    [line] = name_warnings(["C++", "C#", "dog", "bare land", "bareland", "👍", "👎"])
    assert "'C++' and 'C#', 'bare land' and 'bareland'" in line
    assert name_warnings(["cat", "dog"]) == []


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("American_Bulldog", "american bulldog"),
        ("  Boeing 737-800 ", "boeing 737 800"),
        ("non\u2011breaking", "non breaking"),
        ("Ｃ＃", "c#"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("a\u00adb", "ab"),
        ("℡", "tel"),
        ("A-", "a-"),
        ("C++", "c++"),
        ("__", "__"),
        ("-", "-"),
    ],
)
def test_normal_form_of(name, form):
    assert normalise(name) == form


@given(st.text())
def test_normalise_is_idempotent_and_ignores_the_unicode_form(name):
    form = normalise(name)
    assert normalise(form) == form
    assert normalise(unicodedata.normalize("NFD", name)) == form
    assert form == " ".join(form.split())


@given(st.lists(st.text(max_size=12)))
def test_any_list_is_accepted_or_refused_with_one_line(names):
    try:
        checked = check_names(names)
    except UserError as error:
        check_message(error)
    else:
        assert check_names(checked) == checked
        assert checked == [name.strip() for name in names]
        assert match(checked, reversed(checked)) == dict(zip(checked, checked, strict=True))


@given(
    content=st.binary(max_size=80) | st.text(alphabet='[]{}",:\\ \nadirnmecls1#', max_size=80).map(str.encode),
    suffix=st.sampled_from(["txt", "json"]),
)
def test_any_file_is_read_or_refused(tmp_path_factory, content, suffix):
    path = write(tmp_path_factory.getbasetemp() / f"fuzz.{suffix}", content)
    try:
        assert all(read_class_file(path))
    except UserError as error:
        check_message(error)


def test_match_prefers_the_exact_name_and_ignores_order():
    assert match(["A-B", "x", "a b"], ["a b", "A-B"]) == {"A-B": "A-B", "a b": "a b"}
    assert match(["a-b"], ["A b", "a_b"]) == {"a-b": "A b"}
    assert match(["RED_fox"], ["cat", "red fox"]) == {"RED_fox": "red fox"}
    assert nearest("sunglass", ["missile", "Sun_Glasses", "sunglasses"], normalise) == "sunglasses"
    assert nearest("sunglass", ["missile"], normalise) is None


def make_folders(root, names):
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def test_folders_are_matched_by_name_whatever_the_order(tmp_path):
    make_folders(tmp_path, ["Russian_Blue", "C#", "beagle", ".cache", "__MACOSX"])
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "Thumbs.db").touch()
    expected = {"Russian_Blue": "russian blue", "C#": "C#", "beagle": "Beagle"}
    assert folder_classes(tmp_path, ["russian blue", "Beagle", "C#", "absent"]) == expected
    assert folder_classes(tmp_path, ["absent", "C#", "Beagle", "russian blue"]) == expected


@pytest.mark.parametrize("place", ["test", "."])
def test_folders_are_matched_through_classes_json_in_or_beside_the_folder(tmp_path, place):
    make_folders(tmp_path / "test", ["Highway", "Forest", "n01440764"])
    table = {"classes": [{"dir": "Highway", "name": "highway or road"}, {"dir": "N01440764", "name": "tench"}, {"name": "Forest"}]}
    (tmp_path / place / "classes.json").write_text(json.dumps(table))
    found = folder_classes(tmp_path / "test", ["Tench", "forest", "Highway or Road"])
    assert found == {"Forest": "forest", "Highway": "Highway or Road", "n01440764": "Tench"}


def test_folders_without_a_class_are_refused_with_the_nearest_name(tmp_path):
    make_folders(tmp_path / "test", ["AnnualCrop", "qqq"])
    call = lambda **options: folder_classes(tmp_path / "test", ["annual crop", "river"], **options)  # noqa: E731
    refused(call, "2 folders", "'AnnualCrop' (nearest class: 'annual crop')", "'qqq'", "classes.json")
    refused(lambda: call(classes_json=tmp_path / "none.json"), "does not exist")
    (tmp_path / "classes.json").write_text('{"classes": [{"dir": 3, "name": "river"}]}')
    refused(call, "entry 1", "dir")
    (tmp_path / "classes.json").write_text('["river"]')
    refused(call, "2 folders")


def test_test_folder_must_hold_folders(tmp_path):
    refused(lambda: folder_classes(tmp_path, ["cat"]), "no class folders")
    refused(lambda: folder_classes(tmp_path / "none", ["cat"]), "cannot be listed")


def test_folder_name_that_is_not_utf8_is_named_printably(tmp_path):
    import os

    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    refused(lambda: folder_classes(tmp_path, ["cat"]), "caf").encode()


def test_ten_thousand_names_are_read_in_a_blink(tmp_path):
    names = [f"Spezies_{i} größe" for i in range(10_000)]
    path = write(tmp_path / "c.txt", "\n".join(names))
    start = time.process_time()
    assert read_class_file(path) == names
    assert name_warnings(names) == []
    assert len(match([name.upper() for name in names], names)) == 10_000
    assert time.process_time() - start < 3
