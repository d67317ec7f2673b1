"""Templates to one HTML page: everything inline, nothing fetched, and nothing run but the page's own script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from finelens.storage.files import json_text


@cache
def environment() -> Environment:
    """Templates of the package. Escaping is on for every one, whatever its suffix: ``select_autoescape`` goes by suffix and misses some."""
    env = Environment(
        loader=PackageLoader("finelens.reporting", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters["percent"] = lambda value, digits=0: f"{value:.{digits}%}"
    # An option of a command and its value go to the next line together.
    env.filters["options"] = lambda command: command.split(" --")
    env.filters["number"] = lambda value: f"{value:,}"
    return env


def asset(name: str) -> str:
    """A text file of the package: ``style.css`` or ``page.js``."""
    return files("finelens.reporting").joinpath(name).read_text(encoding="utf-8")


def render(
    template: str, content: dict[str, Any], data: dict[str, Any] | None = None, script: Sequence[str] = ("page.js",), *, answers: bool = False
) -> str:
    """One page.

    Args:
        template: Name of the template; it extends ``base.html.j2``.
        content: Its variables.
        data: What the script reads, by the id of its element; see :func:`script_json`.
        script: The package files that make the script, in order.
        answers: Whether the script may talk to the server that the page came from, and to no other.
    """
    style, code = asset("style.css"), "".join(map(asset, script))
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(code)}'; base-uri 'none'; form-action 'none'"
    policy += "; connect-src 'self'" if answers else ""
    blocks = {name: script_json(value) for name, value in (data or {}).items()}
    # The two texts are files of this package, and their hashes are the only ones the policy lets through.
    return environment().get_template(template).render(**content, policy=policy, style=Markup(style), script=Markup(code), data=blocks)


def script_json(value: Any) -> Markup:
    """JSON that can stand inside a ``<script type="application/json">``: no character of it can end the element or start a comment."""
    text = json_text(value)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
