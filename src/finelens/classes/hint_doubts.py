"""What a hints file says that may be meant otherwise: allowed, and said as a warning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finelens.classes.hints import how_given, plain
from finelens.classes.labels import UNANSWERED, Told, read_rows
from finelens.classes.names import normalise
from finelens.classes.text_files import counted, faults, listing, quote


def doubts_of(hints: Path | Told, listed: Sequence[str], new: Sequence[str]) -> list[str]:
    """A line for each kind of doubt.

    Args:
        hints: The file, which was read without a fault.
        listed: Names of the class list.
        new: Names that only the hints have.
    """
    told = _parts(listed, new)
    found = [faults(told)] if told else []
    return found if isinstance(hints, Told) else [*found, *many_blanks(hints)]


def _parts(listed: Sequence[str], new: Sequence[str]) -> list[str]:
    """New names that are a part of listed ones, or that listed ones are a part of; a class of its own with such a name splits the listed one."""
    words = {name: set(normalise(name).split()) for name in [*listed, *new]}
    told = []
    for name in new:
        within = [quote(other) for other in listed if words[name] <= words[other]]
        holds = [quote(other) for other in listed if words[other] <= words[name]]
        if within:
            told.append(f"{quote(name)} is part of {listing(within)} of the list: {_remedy(within)}")
        elif holds:
            told.append(f"{listing(holds)} of the list is part of {quote(name)}: {_remedy(holds)}")
    return told


def _remedy(meant: Sequence[str]) -> str:
    return f"if that is meant, write {meant[0]}" if len(meant) == 1 else "if one of them is meant, write it in full"


def many_blanks(hints: Path) -> list[str]:
    """A line about empty labels where they are more than the names, but for answers whose way is written down: a person gave these one by one."""
    given = how_given(hints) or {}
    rows = [(path, label) for _, path, label in read_rows(hints, "hints file") if label != UNANSWERED]
    blank = sum(not label and plain(path) not in given for path, label in rows)
    if blank <= sum(bool(label) for _, label in rows):
        return []
    have = counted(blank, "photograph has", "photographs have")
    return [f"{have} an empty label, which means none of the classes; write {UNANSWERED} for those that are not answered"]
