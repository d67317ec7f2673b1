"""What a file of another tool says, before it is held against a folder; and the few questions that every reader asks of foreign JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finelens.errors import UserError
from finelens.images.boxes import Box


@dataclass(frozen=True, slots=True)
class Said:
    """One photograph of a file, or one box in it.

    Attributes:
        names: What the file calls the photograph, the likeliest first.
        number: Which box of it, from 1; 0 for the whole photograph.
        box: The box; None for the whole photograph, and for a box without area.
        label: Class that a person gave it; None where nobody did.
    """

    names: tuple[str, ...]
    number: int = 0
    box: Box | None = None
    label: str | None = None


class Leavings:
    """What of a file is not read, counted by kind, with a first example."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, example: str) -> None:
        """Count one more."""
        count, first = self._kinds.get(kind, (0, example))
        self._kinds[kind] = count + 1, first

    def lines(self) -> list[str]:
        """A line for each kind."""
        return [f"left out: {count} {kind} (first {first})" for kind, (count, first) in self._kinds.items()]


@dataclass
class Contents:
    """What a file says.

    Attributes:
        form: Name of its form.
        said: What is to be classified, in the order of the file.
        classes: Names of classes that it holds; some may be spelled in two ways.
        passed: Photographs that it names and of which nothing is to be classified.
        left: What is not read.
    """

    form: str
    said: list[Said] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    passed: list[tuple[str, ...]] = field(default_factory=list)
    left: Leavings = field(default_factory=Leavings)


def entries(document: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    """The objects in a list of a JSON document.

    Raises:
        UserError: It is no list of objects.
    """
    return objects(document.get(key), f"{where}: {key}")


def objects(value: Any, where: str) -> list[Mapping[str, Any]]:
    """A list of JSON objects.

    Raises:
        UserError: It is none.
    """
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise UserError(f"{where} must be a list of objects; export the file again")
    return value


def text(value: Any) -> str:
    """A JSON text without blanks around it; empty for anything else. Halves of characters, which JSON can hold and no file, become question marks."""
    return value.strip().encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def number(value: Any) -> float:
    """A JSON number; not-a-number for anything else."""
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")
    except OverflowError:
        return float("nan")


def identity(value: Any) -> str | int | float | None:
    """What a JSON document calls a thing; what is no text or number is known by how it is written."""
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """So many JSON numbers; None for anything else."""
    if not isinstance(value, list) or len(value) != count:
        return None
    return tuple(map(number, value))


def distinct(names: Iterable[str]) -> list[str]:
    """Names that are not empty, each once, in their order."""
    return [name for name in dict.fromkeys(names) if name]
