from __future__ import annotations

import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelens.classes.descriptions import align, clean_texts, load_descriptions
from finelens.classes.names import normalise
from finelens.errors import UserError


def words(texts):
    return [len(text.split()) for text in texts]


def check_message(error: UserError) -> None:
    """One line that can be printed."""
    message = str(error)
    assert message.splitlines() == [message]
    message.encode()


def refused(call, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    message.encode()
    for part in parts:
        assert part in message


def test_sentences_go_to_the_class_of_the_name_not_of_the_position():
    raw = load_descriptions({"RED_fox": ["red"], "C#": ["sharp"], "extra": ["x"], "c++": ["plus"]})
    aligned, report = align(["C++", "red fox", "C#"], raw)
    assert aligned == (("plus",), ("red",), ("sharp",))
    assert report.matched == ("C++", "red fox", "C#")
    assert (report.missing, report.empty, report.extra) == ((), (), ("extra",))


def test_aliases_stand_in_for_names_but_never_serve_two_classes():
    entry = {"name": "sunglasses", "aliases": ["Sun-Glass", "shades"], "texts": ["dark glasses"]}
    raw = load_descriptions({"dataset": "d", "kind": "sentence", "classes": [entry, {"name": "dog", "texts": ["barks"]}]})
    assert align(["sun glass", "dog"], raw)[0] == (("dark glasses",), ("barks",))
    aligned, report = align(["sun glass", "sunglasses", "shades"], raw)
    assert aligned == ((), ("dark glasses",), ())
    assert report.missing == ("sun glass", "shades")


def test_texts_are_split_stripped_and_deduplicated_per_class():
    texts = [" one\n\n two\r\nthree\t three ", "", " \n", "one", "four\x00five", "two"]
    assert clean_texts(texts) == ["one", "two", "three three", "one", "four five", "two"]
    aligned, report = align(["a", "b"], load_descriptions({"a": texts, "b": ["one"]}))
    assert aligned == (("one", "two", "three three", "four five"), ("one",))
    assert report.duplicate == {"a": 2}
    assert report.sentences == 5
    assert report.lines()[-1] == "2 sentences dropped as repeated in 1 class: 'a' (2)"


def test_report_names_everything_that_is_wrong_and_is_json():
    raw = load_descriptions({"sunglasses": ["dark"], "b": [" "], "c": ["three words here", "a", "x " * 9], "d": ["p", "q"], "e": ["q", "p"]})
    _, report = align(["sunglass", "b", "c", "d", "e"], raw, count_tokens=words, context_length=2)
    assert (report.missing, report.empty, report.extra) == (("sunglass",), ("b",), ("sunglasses",))
    assert report.truncated == 2
    assert [(text.name, text.tokens) for text in report.worst] == [("c", 9), ("c", 3)]
    assert report.identical == (("d", "e"),)
    lines = report.lines()
    assert "3 of 5 classes described by 7 sentences" in lines[0]
    assert "'sunglass' (did you mean 'sunglasses' in the file?)" in lines[1]
    assert "an entry without text for 1 class," in lines[2]
    assert "1 entry for no class of the list" in lines[3]
    assert "'d' = 'e'" in lines[4]
    assert "2 sentences of more than 2 tokens" in lines[5]
    assert all(len(line.splitlines()) == 1 for line in lines)
    stored = json.loads(json.dumps(report.to_json()))
    assert stored["missing"] == ["sunglass"]
    assert stored["worst"][0]["tokens"] == 9
    assert stored["context_length"] == 2


def test_token_lengths_exactly_at_the_limit_are_not_reported():
    raw = load_descriptions({"a": ["one two", "one two three"]})
    assert align(["a", "b"], raw, count_tokens=words, context_length=3)[1].truncated == 0
    assert align(["a", "b"], raw, count_tokens=words, context_length=2)[1].truncated == 1
    assert align(["a", "b"], raw)[1].context_length is None


def test_four_of_a_hundred_classes_without_descriptions_are_listed_and_left_to_templates():
    names = ["airplanes", "faces", "leopards", "motorbikes", *(f"thing {i}" for i in range(96))]
    entries = {name.replace(" ", "_"): [f"{name} number {j}" for j in range(30)] for name in names[4:]}
    aligned, report = align(names, load_descriptions(entries))
    assert report.missing == ("airplanes", "faces", "leopards", "motorbikes")
    assert [len(texts) for texts in aligned] == [0] * 4 + [30] * 96
    assert report.lines()[1] == ("WARNING: no description for 4 classes, templates stand in: 'airplanes', 'faces', 'leopards', 'motorbikes'")


def test_long_lists_are_cut_with_their_count():
    names = [f"class {i}" for i in range(20)]
    line = align(names, load_descriptions({"class 19": ["x"]}))[1].lines()[1]
    assert "19 classes" in line
    assert line.endswith("and 14 more")


def test_nothing_matched_is_refused_with_examples_of_both_sides():
    refused(lambda: align(["cat", "dog"], load_descriptions({"n01": ["x"], "n02": ["y"]})), "'cat'", "'n01'", "none of the 2")
    refused(lambda: align(["cat"], load_descriptions({"cat": ["", " \n"]})), "no text")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ["not valid JSON", "line 1"]),
        ("[]", ["JSON object", "list"]),
        ("{}", ["no classes"]),
        ('{"cat": "meows"}', ["'cat'", "text", "[ ]"]),
        ('{"cat": null}', ["'cat'", "null"]),
        ('{"cat": {"a": ["b"]}}', ["'cat'", "JSON object"]),
        ('{"cat": ["a", 3]}', ["'cat'", "item 2", "number"]),
        ('{"cat": ["a", true]}', ["'cat'", "item 2", "true/false"]),
        ('{"cat": [["a"]]}', ["'cat'", "item 1", "list"]),
        ('{"cat": ["\\udc00"]}', ["'cat'", "surrogate"]),
        ('{"cat": [], "dog": [], "cat": []}', ["repeats the key 'cat'"]),
        ('{"red fox": ["a"], "Red_Fox": ["b"]}', ["'red fox' and 'Red_Fox'", "merge"]),
        ('{"": ["a"]}', ["visible"]),
        ('{"a\\u0000": ["a"]}', ["control"]),
        (json.dumps({"cat": ["x" * 5_000_000]}), ["'cat'", "item 1", "5000000"]),
        ('{"classes": [{"name": "cat"}]}', ["entry 1", '"texts"']),
        ('{"classes": [{"name": "cat", "texts": [], "text": []}]}', ["entry 1"]),
        ('{"classes": [{"name": 3, "texts": []}]}', ["entry 1", "text"]),
        ('{"classes": [{"name": "cat", "texts": ["a", 1]}]}', ["'cat'", "item 2"]),
        ('{"classes": [{"name": "cat", "texts": [], "aliases": "puss"}]}', ["'cat'", "aliases"]),
        ('{"classes": [{"name": "cat", "texts": []}, 3]}', ["entry 2"]),
        ('{"classes": [{"name": "a", "texts": []}, {"name": "b", "aliases": ["A"], "texts": []}]}', ["'a' and 'A'"]),
        ('{"classes": [{"name": "cat", "texts": []}], "kinds": 1}', ["'kinds'", "dataset"]),
        ('{"classes": [{"name": "cat", "texts": []}], "kind": "pair"}', ["'pair'", "sentence"]),
    ],
)
def test_malformed_descriptions_are_refused_by_key(tmp_path, content, parts):
    path = tmp_path / "d.json"
    path.write_text(content)
    refused(lambda: load_descriptions(path), "d.json", *parts)


def test_dictionaries_are_checked_like_files_and_a_class_may_be_called_classes():
    refused(lambda: load_descriptions({3: ["a"]}), "'3'")
    refused(lambda: load_descriptions({"cat": [b"a"]}), "'cat'", "bytes")
    assert align(["classes"], load_descriptions({"classes": ("a", "b")}))[0] == (("a", "b"),)


def test_file_with_bom_is_read(tmp_path):
    path = tmp_path / "d.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"柴犬": ["a dog 🐕"], "قط": ["cat"]}, ensure_ascii=False).encode())
    assert align(["قط", "柴犬"], load_descriptions(path))[0] == (("cat",), ("a dog 🐕",))


names_and_texts = st.dictionaries(st.text(max_size=8), st.lists(st.text(max_size=20), max_size=4), max_size=6)


@given(entries=names_and_texts, seed=st.integers(0, 9))
def test_order_of_entries_never_matters(entries, seed):
    try:
        raw = load_descriptions(entries)
        names = [entry.name for entry in raw.entries] + ["never described"]
        aligned, report = align(names, raw, count_tokens=words, context_length=3)
    except UserError as error:
        check_message(error)
        return
    shuffled = random.Random(seed).sample(list(entries.items()), len(entries))
    aligned_again, report_again = align(names, load_descriptions(dict(shuffled)), count_tokens=words, context_length=3)
    assert aligned_again == aligned
    assert report_again == report
    assert {*report.matched, *report.missing, *report.empty} == set(names)
    assert sum(map(len, aligned)) == report.sentences
    for texts in aligned:
        assert len(set(texts)) == len(texts)
        assert all(text == " ".join(text.split()) and text for text in texts)
    json.dumps(report.to_json()).encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["classes", "name", "texts", "aliases", "kind", "a"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_loaded_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "fuzz_descriptions.json"
    path.write_text(json.dumps(value))
    try:
        raw = load_descriptions(path)
    except UserError as error:
        check_message(error)
    else:
        assert all(isinstance(text, str) for entry in raw.entries for text in entry.texts)


def test_ten_thousand_classes_align_fast():
    names = [f"Species {i}" for i in range(10_000)]
    entries = {name.lower().replace(" ", "_"): ["first", "second", "first"] for name in reversed(names[500:])}
    entries.update({f"unknown {i}": ["x"] for i in range(500)})
    start = time.process_time()
    aligned, report = align(names, load_descriptions(entries), count_tokens=words, context_length=77)
    report.lines()
    assert time.process_time() - start < 6
    assert len(report.missing) == 500
    assert len(report.extra) == 500
    assert report.duplicate[names[-1]] == 1
    assert aligned[-1] == ("first", "second")
    assert normalise("species_9999") == normalise(names[-1])
