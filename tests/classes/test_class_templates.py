from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelens.classes.templates import DEFAULT_TEMPLATES, check_template, check_templates, fill, read_templates
from finelens.errors import UserError


def test_default_templates_pass_their_own_check():
    assert check_templates(DEFAULT_TEMPLATES) == DEFAULT_TEMPLATES
    assert len(DEFAULT_TEMPLATES) == 7


@pytest.mark.parametrize(
    "text",
    [
        "{0.__class__}",
        "a {0.__class__.__mro__} {}",
        "a photo",
        "",
        "{} and {}",
        "{{}}",
        "{name}",
        "a {} {",
        "a } {}",
        "{!r}",
        "a\n{}",
        "{}\ud800",
        "{}" + "x" * 600,
    ],
)
def test_template_is_refused_on_one_line(text):
    with pytest.raises(UserError) as caught:
        check_template(text)
    assert len(str(caught.value).splitlines()) == 1


def test_templates_given_as_something_else_are_refused():
    for templates in ("a {}", [], [3], [None]):
        with pytest.raises(UserError):
            check_templates(templates)


def test_fill_replaces_and_never_formats():
    assert fill("a photo of a {}.", "maine_coon") == "a photo of a maine coon."
    assert fill("{}!", "{x} {} %s {0._a}") == "{x} {} %s {0. a}!"
    assert fill("{}", "_") == "_"
    assert fill("{}.", "C++") == "C++."


@given(st.text(min_size=1))
def test_filled_template_keeps_what_stands_around_the_name(name):
    filled = fill("a {} b", name)
    assert filled.startswith("a ")
    assert filled.endswith(" b")
    if not (set("_") & set(name)) and name == " ".join(name.split()):
        assert filled == f"a {name} b"


@given(st.text(alphabet="{} ab0.!_\n"))
def test_accepted_template_takes_exactly_the_name(text):
    try:
        template = check_template(text)
    except UserError:
        return
    assert fill(template, "QQ").count("QQ") == 1
    assert "{" not in fill(template, "QQ")


def test_files_of_templates(tmp_path):
    text, listed = tmp_path / "t.txt", tmp_path / "t.json"
    text.write_bytes(b"\xef\xbb\xbf# mine\r\na {}.\r\n\r\nthe {}.\r\na {}.\r\n")
    listed.write_text(json.dumps(["a {}.", "the {}."]))
    assert read_templates(text) == read_templates(listed) == ("a {}.", "the {}.")
    text.write_text("a {}.\nno field\n")
    with pytest.raises(UserError, match="line 2"):
        read_templates(text)
    for content in ("# none", ""):
        text.write_text(content)
        with pytest.raises(UserError, match="no templates"):
            read_templates(text)
    listed.write_text('{"a": 1}')
    with pytest.raises(UserError, match="JSON list"):
        read_templates(listed)
