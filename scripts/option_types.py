"""Write src/finelens/methods/option_types.json anew from the methods' own options: ``python scripts/option_types.py``."""

from __future__ import annotations

import dataclasses
import json
import typing
from types import UnionType
from typing import Any

from finelens.methods.option_types import FILE, SCALARS
from finelens.methods.registry import METHODS

NAMES = {kind: name for name, kind in SCALARS.items()}


def schema(hint: Any) -> dict[str, Any]:
    """A type in the words of JSON Schema."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, UnionType):
        return {"anyOf": [schema(argument) for argument in arguments]}
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return {"type": "array", "items": schema(arguments[0])}
    if origin is tuple:
        return {"type": "array", "prefixItems": [schema(argument) for argument in arguments]}
    return {"type": NAMES[hint]}


def table() -> str:
    """The file's text: an option a line."""
    methods = []
    for method in METHODS:
        hints = typing.get_type_hints(method.config_class)
        options = [f"    {json.dumps(field.name)}: {json.dumps(schema(hints[field.name]))}" for field in dataclasses.fields(method.config_class)]
        methods.append(f"  {json.dumps(method.name)}: {{\n" + ",\n".join(options) + "\n  }" if options else f"  {json.dumps(method.name)}: {{}}")
    return "{\n" + ",\n".join(methods) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(table(), encoding="utf-8")
