"""Names and types of every method's options, so that a mistyped one is refused before a tensor library is imported.

``option_types.json`` holds them in the words of JSON Schema. scripts/option_types.py writes it from the methods themselves, which stay the only
place where an option is defined; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Any, Literal

FILE = Path(__file__).with_name("option_types.json")
SCALARS = {"integer": int, "number": float, "boolean": bool, "string": str, "null": type(None)}


@cache
def option_types() -> dict[str, dict[str, Any]]:
    """Types of the options by method and name."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return {method: {name: as_type(schema) for name, schema in options.items()} for method, options in found.items()}


def as_type(schema: Mapping[str, Any]) -> Any:
    """The type that a schema describes."""
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    if "anyOf" in schema:
        return reduce(or_, map(as_type, schema["anyOf"]))
    if schema["type"] != "array":
        return SCALARS[schema["type"]]
    as_read: Any = tuple
    return as_read[as_type(schema["items"]), ...] if "items" in schema else as_read[tuple(map(as_type, schema["prefixItems"]))]
