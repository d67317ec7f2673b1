from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finelens.classes.class_set import build_class_set
from finelens.classes.templates import DEFAULT_TEMPLATES, fill
from finelens.errors import UserError


def letters(texts):
    return [len(text) for text in texts]


def test_names_alone_use_the_default_templates():
    classes, report, warnings = build_class_set([" Cat", "dog"])
    assert classes.names == ("Cat", "dog")
    assert classes.templates == DEFAULT_TEMPLATES
    assert classes.descriptions == ((), ())
    assert report is None
    assert warnings == []


def test_everything_together(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"DOG": ["It barks."], "fish": ["It swims."]}))
    classes, report, warnings = build_class_set(["cat", "dog"], path, ["a {}.", "a {}."], count_tokens=letters, context_length=8)
    assert classes.templates == ("a {}.",)
    assert classes.descriptions == ((), ("It barks.",))
    assert report is not None
    assert report.missing == ("cat",)
    assert report.extra == ("fish",)
    assert report.truncated == 1
    assert warnings == []
    assert len(classes) == 2


def test_warnings_name_single_classes_and_names_that_do_not_fit():
    _, _, warnings = build_class_set(["a long name"], templates=["{}", "a {}"], count_tokens=letters, context_length=12)
    assert len(warnings) == 2
    assert "only one class" in warnings[0]
    assert "'a long name' (13 tokens)" in warnings[1]


def test_bad_parts_are_refused():
    for options in ({"templates": ["{0}"]}, {"templates": []}, {"descriptions": {"x": ["y"]}}, {"descriptions": "none.json"}):
        with pytest.raises(UserError):
            build_class_set(["cat", "dog"], **options)
    with pytest.raises(UserError):
        build_class_set([])


def test_class_order_of_the_list_is_kept_and_only_permutes_the_texts():
    entries = {"b": ["second"], "a": ["first"], "c": ["third"]}
    forward = build_class_set(["a", "b", "c"], entries)[0]
    backward = build_class_set(["c", "b", "a"], entries)[0]
    assert forward.descriptions == backward.descriptions[::-1] == (("first",), ("second",), ("third",))


def test_names_with_braces_reach_the_prompt_unchanged():
    classes = build_class_set(["{x}", "%s", "{0.real}"])[0]
    assert [fill(classes.templates[0], name) for name in classes.names] == ["a photo of a {x}.", "a photo of a %s.", "a photo of a {0.real}."]


def test_examples_of_the_documentation_are_read():
    page = (Path(__file__).parents[2] / "docs" / "descriptions.md").read_text(encoding="utf-8")
    examples = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)]
    described = [
        build_class_set(["Coon-Cat", "MAINE_coon", "persian"][i:], example)[0].descriptions for i, example in ((1, examples[0]), (0, examples[1]))
    ]
    assert [[len(texts) for texts in classes] for classes in described] == [[2, 1], [0, 1, 0]]


def test_reading_names_does_not_import_torch():
    code = "import sys, finelens.classes.names, finelens.classes.descriptions, finelens.classes.templates; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0
