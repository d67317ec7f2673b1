"""Prompt templates: a sentence with one ``{}`` where the class name goes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from finelens.classes.text_files import plain_line, quote, read_lines, read_user_json
from finelens.errors import UserError

DEFAULT_TEMPLATES = (
    "a photo of a {}.",
    "a sharp photograph whose subject is a {}.",
    "a {} photographed in its usual surroundings.",
    "a picture of one {}, taken from close by.",
    "a {} seen from some distance.",
    "an everyday snapshot with a {} in it.",
    "a view of a {} in natural light.",
)
MAX_TEMPLATE_LENGTH = 500
_WHAT = "template file"


def check_template(text: str, where: str = "template") -> str:
    """Return the template without surrounding white space.

    Args:
        text: The template.
        where: Where it stands, for messages.

    Raises:
        UserError: Not text, too long, with control characters, or with anything but exactly one ``{}`` in the way of braces.
    """
    text = plain_line(text, where, called="template", named="", most=MAX_TEMPLATE_LENGTH, form="it as one plain line")
    if text.count("{}") != 1:
        raise UserError(f"{where}: {quote(text)} must contain {{}} exactly once, where the class name goes")
    if set(text.replace("{}", "")) & {"{", "}"}:
        raise UserError(f"{where}: {quote(text)} has braces other than the one {{}}; remove them")
    return text


def check_templates(texts: Iterable[str], source: str = "templates") -> tuple[str, ...]:
    """Check each template and drop repetitions.

    Raises:
        UserError: A template is refused, or there is none.
    """
    if isinstance(texts, str):
        raise UserError(f"{source}: one text {quote(texts)} was given where a list of templates is needed")
    checked = dict.fromkeys(check_template(text, f"{source}, entry {number}") for number, text in enumerate(texts, start=1))
    if not checked:
        raise UserError(f"{source}: there are no templates; write one a line, for example: {DEFAULT_TEMPLATES[0]}")
    return tuple(checked)


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Read templates from text, one a line (see ``files.py`` for comments), or from a ``.json`` list.

    Raises:
        UserError: The file cannot be read or a template is refused.
    """
    source = f"{_WHAT} {quote(str(path))}"
    if Path(path).suffix.lower() == ".json":
        content = read_user_json(path, _WHAT)
        if not isinstance(content, list):
            raise UserError(f"{source} must be a JSON list of templates")
        return check_templates(content, source)
    return check_templates([check_template(line, f"{source}, line {number}") for number, line in read_lines(path, _WHAT)], source)


def fill(template: str, name: str) -> str:
    """Put a class name into a template, underscores as spaces.

    Plain replacement, never ``str.format``: a format field would walk attributes, and braces in a name are part of the name.
    """
    return template.replace("{}", " ".join(name.replace("_", " ").split()) or name)
