"""Class names that camera-trap forms treat apart: people, vehicles, and photographs without anything."""

from __future__ import annotations

from typing import Literal

from finelens.classes.names import normalise

Kind = Literal["animal", "human", "vehicle", "blank"]
_NAMES: dict[Kind, frozenset[str]] = {
    "blank": frozenset({"blank", "empty", "nothing", "no animal", "background"}),
    "human": frozenset({"human", "humans", "person", "people", "homo sapiens"}),
    "vehicle": frozenset({"vehicle", "vehicles", "car", "truck", "motorbike"}),
}


def kind_of(name: str) -> Kind:
    """What a class is to a camera trap; every other class is an animal."""
    return next((kind for kind, names in _NAMES.items() if normalise(name).casefold() in names), "animal")
