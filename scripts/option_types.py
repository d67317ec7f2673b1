"""Write src/finelens/methods/option_types.py anew from the methods' own options: ``python scripts/option_types.py``."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
from pathlib import Path
from types import NoneType, UnionType

from finelens.methods.registry import METHODS

TARGET = Path(__file__).parents[1] / "src/finelens/methods/option_types.py"
HEAD = '''"""Names and types of every method's options, so that a mistyped one is refused before a tensor library is imported.

Written by scripts/option_types.py from the methods themselves, which stay the only place where an option is defined; a test compares the two.
"""

from __future__ import annotations

from typing import Any, Literal

OPTION_TYPES: dict[str, dict[str, Any]] = {
'''


def spelled(hint: object) -> str:
    """A type as it stands in source code."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if origin in (typing.Union, UnionType):
        return " | ".join(map(spelled, arguments))
    if origin is tuple:
        return f"tuple[{', '.join('...' if a is Ellipsis else spelled(a) for a in arguments)}]"
    if hint is NoneType:
        return "None"
    assert isinstance(hint, type), hint
    return hint.__name__


def table() -> str:
    """The module's text, not formatted yet."""
    lines = []
    for method in METHODS:
        hints = typing.get_type_hints(method.config_class)
        own = [f'        "{field.name}": {spelled(hints[field.name])},\n' for field in dataclasses.fields(method.config_class)]
        lines.append(f'    "{method.name}": {{\n{"".join(own)}    }},\n')
    return HEAD + "".join(lines) + "}\n"


if __name__ == "__main__":
    TARGET.write_text(table())
    subprocess.run([sys.executable, "-m", "ruff", "format", TARGET], check=True)
