"""Class lists and descriptions as they are written: through the whole run, and any text at all through the readers."""

from __future__ import annotations

import json
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from finelens import api
from finelens.classes.descriptions import align, load_descriptions
from finelens.classes.names import check_names, normalise, read_class_file
from finelens.classes.templates import check_template, fill
from finelens.errors import UserError
from finelens.runs.model import load_model
from finelens.storage.predictions import read_predictions
from tests.faults.examples import EXAMPLES, attempt
from tests.toy import QUIET, picture

ODD = [
    "C++",
    "C#",
    "rock & roll",
    '7-series "M3"',
    "a/b",
    "..",
    "{x}",
    "{0.__class__.__mro__}",
    "%s %d",
    "=cmd|'/c calc'!A0",
    "<script>alert(1)</script>",
    '" onerror="x',
    "javascript:x",
    "<end_of_text> cat",
    "[SEP] cat",
    "emoji \U0001f600",
    "\u732b",
    "\u05d7\u05ea\u05d5\u05dc",
    "\u200fRTL\u200e mark",
    "O'Brien, Jr.",
    "caf\u00e9",
    "-",
    "1",
    "null",
    "x" * 200,
]


@pytest.mark.parametrize("form", ["text", "json"])
def test_any_punctuation_through_a_whole_run(tiny_vit, tmp_path, form):
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(3):
        Image.fromarray(picture(seed, 0)).save(photos / f"{seed}.png")
    names = tmp_path / ("names.txt" if form == "text" else "names.json")
    # A byte-order mark, line ends of another system, blank lines and comments around them.
    content = "\ufeff# names\r\n\r\n" + "\r\n".join(ODD) + "\r\n  \r\n## end\r\n" if form == "text" else json.dumps(ODD)
    names.write_bytes(content.encode())
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({name: [f"{name} is {{}} and <end_of_text> %s", "plain"] for name in ODD[::2]} | {"not a class": ["x"]}))
    options = {"training": {"precision": "float32"}}
    backbone = f"local:{tiny_vit}"
    run = api.zero_shot(photos, names, tmp_path / "run", method="cupl", descriptions=texts, backbone=backbone, options=options, console=QUIET)
    assert load_model(tmp_path / "run" / "model").class_names == tuple(ODD)
    rows = read_predictions(tmp_path / "run" / "predictions.csv")
    assert rows == run.rows
    assert {row.label for row in rows} <= set(ODD)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"config.json", "events.jsonl", "predictions.csv", "model"}
    # No name becomes a path.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["photos", names.name, "texts.json", "run"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("cat", "cat"),
        ("Cat", "cAT"),
        ("red  cat", "red\tcat".replace("\t", " ")),
        ("red_cat", "red cat"),
        (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")),
        ("ﬁg", "fig"),
        ("a\u200bb", "ab"),
    ],
)
def test_names_that_are_one_class_are_refused_with_both_lines(tmp_path, first, second):
    path = tmp_path / "names.txt"
    path.write_text(f"{first}\ndog\n{second}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 1.*line 3.*keep one of each"):
        read_class_file(path)


def test_five_megabytes_of_descriptions(tmp_path):
    """Many sentences are read at once; one sentence of five megabytes is refused by name."""
    path = tmp_path / "texts.json"
    sentence = "a bird with a long tail " * 20
    path.write_text(json.dumps({f"class {i}": [f"{sentence} {i} {j}" for j in range(10)] for i in range(1000)}))
    assert path.stat().st_size > 4_900_000
    _, report = align([f"class {i}" for i in range(1000)], load_descriptions(path))
    assert report.sentences == 10_000
    path.write_text(json.dumps({"cat": ["x" * 5_000_000]}))
    with pytest.raises(UserError, match=r"key 'cat': item 1 has 5000000 characters, at most 20000 are allowed; split it"):
        load_descriptions(path)


def test_ten_thousand_classes_through_names_descriptions_and_prompts(tmp_path):
    names = [f"species {i}" for i in range(10_000)]
    path = tmp_path / "names.txt"
    path.write_text("\n".join(names))
    start = time.process_time()
    assert read_class_file(path) == names
    (texts, _) = align(names, load_descriptions({name: [f"a {name}"] for name in reversed(names)}))
    assert texts[1234] == ("a species 1234",)
    # A quadratic reader would take minutes; this is no timing of a fast one.
    assert time.process_time() - start < 60


ANY_TEXT = st.text(max_size=40)


@given(st.lists(ANY_TEXT, max_size=8))
@settings(max_examples=EXAMPLES)
def test_any_class_list_is_read_as_written_or_refused_in_one_line(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("names") / "names.json"
    path.write_text(json.dumps(names))
    read, refusal = attempt(read_class_file, path)
    if refusal is not None:
        assert refusal.isprintable()
        return
    assert read == [name.strip() for name in names]
    assert len({normalise(name) for name in read}) == len(read)
    assert check_names(read) == read


@given(st.binary(max_size=200))
@settings(max_examples=EXAMPLES)
def test_any_bytes_as_class_file_or_descriptions(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("bytes")
    for name, read in (("a.txt", read_class_file), ("a.json", read_class_file), ("b.json", load_descriptions)):
        (folder / name).write_bytes(content)
        attempt(read, folder / name)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | ANY_TEXT, lambda x: st.lists(x, max_size=4) | st.dictionaries(ANY_TEXT, x, max_size=4)
)


@given(JSON, st.lists(ANY_TEXT, min_size=1, max_size=5))
@settings(max_examples=EXAMPLES)
def test_any_json_as_descriptions_gives_every_class_its_own_or_none(content, names):
    checked, refused = attempt(check_names, names)
    raw, unusable = attempt(load_descriptions, content if isinstance(content, dict) else {"cat": content})
    if refused or unusable:
        return
    found, nothing_matched = attempt(align, checked, raw)
    if nothing_matched:
        return
    texts, report = found
    assert len(texts) == len(checked)
    assert report.sentences == sum(map(len, texts))
    assert all(text == " ".join(text.split()) != "" for sentences in texts for text in sentences)


@given(ANY_TEXT, ANY_TEXT)
@settings(max_examples=EXAMPLES)
def test_any_template_takes_any_name_literally_or_is_refused(template, name):
    accepted, refusal = attempt(check_template, template)
    if refusal is not None:
        return
    before, _, after = accepted.partition("{}")
    filled = fill(accepted, name)
    assert filled.startswith(before)
    assert filled.endswith(after)
