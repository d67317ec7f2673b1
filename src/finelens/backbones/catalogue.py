"""Models worth knowing: what each is for, how large it is, under which licence, and what was published about it. Nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from finelens.errors import UserError

USES = ("natural", "satellite", "species", "medical", "languages")
# What a user of the embedded encoder is pointed to.
RECOMMENDED = "open_clip:PE-Core-B-16/meta"


@dataclass(frozen=True)
class KnownBackbone:
    """A line of the table.

    Attributes:
        spec: As ``--backbone`` takes it.
        uses: Of :data:`USES`.
        image_parameters: Of the image tower, in millions; what an image costs goes with it.
        text_parameters: Of the text tower, in millions; needed while texts are encoded only.
        licence: Of the weights, as their page states it.
        zero_shot: Published mean zero-shot accuracy in percent; None where none is known to us under a protocol that compares.
        source: Where that number is from.
        note: What else to know.
    """

    spec: str
    uses: tuple[str, ...]
    image_parameters: int
    text_parameters: int
    licence: str
    zero_shot: float | None
    source: str
    note: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "uses": list(self.uses), "recommended": self.spec == RECOMMENDED}


def known_backbones(use: str | None = None) -> tuple[KnownBackbone, ...]:
    """The table, best published accuracy of a kind first.

    Args:
        use: One of :data:`USES`; None for all.

    Raises:
        UserError: Unknown use.
    """
    if use is not None and use not in USES:
        raise UserError(f"unknown use {use!r}; there are: {', '.join(USES)}")
    rows = json.loads(files("finelens.backbones").joinpath("catalogue.json").read_text(encoding="utf-8"))
    found = tuple(KnownBackbone(**{**row, "uses": tuple(row["uses"])}) for row in rows)
    return found if use is None else tuple(one for one in found if use in one.uses)


def table_lines(rows: Sequence[KnownBackbone]) -> list[str]:
    """The table for a terminal, and under it where its numbers are from."""
    head = ("BACKBONE", "FOR", "M PARAMETERS", "LICENCE", "ZERO-SHOT", "")
    cells = [
        (
            one.spec,
            ", ".join(one.uses),
            f"{one.image_parameters} + {one.text_parameters}",
            one.licence,
            "" if one.zero_shot is None else f"{one.zero_shot:.1f}",
            one.note,
        )
        for one in rows
    ]
    widths = [max(len(line[i]) for line in (head, *cells)) for i in range(5)]
    lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[5]]).rstrip() for line in (head, *cells)]
    sources = sorted({one.source for one in rows if one.source})
    return [
        *lines,
        "",
        "Parameters in millions: image tower + text tower. Zero-shot: percent, published; empty where no number under one protocol is known here.",
        *(f"Zero-shot from: {source}. Web-scale training data may contain the benchmarks." for source in sources),
        f"To begin with: --backbone {RECOMMENDED}. Several are ranked on your own photographs without labels: --backbone A,B,C (docs/backbones.md).",
    ]
