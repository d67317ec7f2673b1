"""Published numbers as data, and how they may be set beside ours: ``published.json`` holds what the sources say and nothing that they do not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from finelens.bench.rows.results import Result

SCHEMA = 1
TABLE = {"source", "backbone", "protocol", "split", "comparable", "why", "sets", "rows"}
SOURCE = {"paper", "table", "code"}
# Our names of the published backbones; no other backbone of ours is one of them.
BACKBONES = {
    "CLIP ViT-B/32": "open_clip:ViT-B-32-quickgelu/openai",
    "CLIP ViT-B/16": "open_clip:ViT-B-16-quickgelu/openai",
    "CLIP ViT-L/14": "open_clip:ViT-L-14-quickgelu/openai",
    "CLIP RN50": "open_clip:RN50-quickgelu/openai",
}
# Without adaptation the answers are the same under each of these.
PLAIN = ("inductive", "transductive", "online")
STAND_IN = "the embedded backbone is a small stand-in and no CLIP: its numbers compare with no published one"


@dataclass(frozen=True)
class Entry:
    """One published number.

    Attributes:
        method: As the source calls it.
        data: Data set, as our names without the split; ``mean`` for a mean over the sets of the table.
        value: Top-1 accuracy in per cent.
        backbone: As the source calls it.
        protocol: ``zero-shot`` for a model that is not adapted, one of our protocols, or None where it is not known.
        split: ``coop`` for CoOp's split files, what else is known, or None.
        paper: Where the number is from.
        table: Which table of it; None where it is not known.
        code: The authors' repository, if it was read.
        comparable: Whether it may be set beside a row of ours on the same backbone, split and protocol.
        why: The reason.
    """

    method: str
    data: str
    value: float
    backbone: str
    protocol: str | None
    split: str | None
    paper: str
    table: str | None
    code: str | None
    comparable: bool
    why: str

    @property
    def source(self) -> str:
        """Paper and table, in words."""
        return self.paper if self.table is None else f"{self.paper}, {self.table}"


@dataclass(frozen=True)
class Beside:
    """Numbers of one method of one source, beside a table of ours.

    Attributes:
        method: As the source calls it.
        source: Paper and table.
        backbone: As the source calls it.
        protocol: As in :class:`Entry`, in words.
        values: Per cent by our data set.
        comparable: Our data sets whose number may be compared.
        why: The reason.
    """

    method: str
    source: str
    backbone: str
    protocol: str
    values: Mapping[str, float]
    comparable: frozenset[str]
    why: str

    @property
    def mark(self) -> str:
        """``no: REASON``, ``yes: ...``, or the sets for which it is yes."""
        if not self.comparable:
            return f"no: {self.why}"
        return f"yes: {self.why}" if self.comparable == set(self.values) else f"{', '.join(sorted(self.comparable))} only: {self.why}"


@lru_cache(maxsize=1)
def published() -> tuple[Entry, ...]:
    """All published numbers."""
    return tuple(parse(json.loads(files("finelens.bench.tables").joinpath("published.json").read_text(encoding="utf-8"))))


def parse(document: Any) -> Iterator[Entry]:
    """Entries of a document, which is refused where it has a key too few or too many, or a value of another kind.

    Raises:
        ValueError: It is refused; the message says why.
    """
    _need(isinstance(document, dict) and set(document) == {"schema", "tables"} and document["schema"] == SCHEMA, "document", document)
    for number, table in enumerate(document["tables"]):
        where = f"table {number}"
        _need(isinstance(table, dict) and set(table) == TABLE, where, table)
        source, sets, rows = table["source"], table["sets"], table["rows"]
        _need(isinstance(source, dict) and set(source) == SOURCE and _text(source["paper"]), f"{where}, source", source)
        _need(all(source[name] is None or _text(source[name]) for name in ("table", "code")), f"{where}, source", source)
        _need(_text(table["backbone"]) and _text(table["why"]), where, table)
        _need(all(table[name] is None or _text(table[name]) for name in ("protocol", "split")), where, table)
        _need(type(table["comparable"]) is bool, f"{where}, comparable", table["comparable"])
        # What is not known cannot be compared.
        _need(not table["comparable"] or None not in (table["protocol"], table["split"], source["table"]), f"{where}, comparable", table)
        _need(isinstance(sets, list) and sets and all(map(_text, sets)) and len(set(sets)) == len(sets), f"{where}, sets", sets)
        _need(isinstance(rows, dict) and rows != {}, f"{where}, rows", rows)
        for method, values in rows.items():
            _need(_text(method) and isinstance(values, list) and len(values) == len(sets), f"{where}, {method}", values)
            _need(all(value is None or (type(value) is float and 0 < value <= 100) for value in values), f"{where}, {method}", values)
            for data, value in zip(sets, values, strict=True):
                if value is not None:
                    about = {name: table[name] for name in ("backbone", "protocol", "split", "comparable", "why")}
                    yield Entry(method=method, data=data, value=value, **about, **source)


def _need(fits: Any, where: str, got: Any) -> None:
    if not fits:
        raise ValueError(f"published numbers, {where}: not as it has to be: {str(got)[:200]}")


def _text(value: Any) -> bool:
    return isinstance(value, str) and value == value.strip() != ""


def beside(rows: Sequence[Result]) -> list[Beside]:
    """Published numbers on the data sets of a table of ours, those that can be compared first.

    Args:
        rows: Rows of one protocol, backbone, profile and options.
    """
    sets = {row.key.data: row for row in rows}
    found: dict[tuple[Any, ...], dict[str, tuple[float, str]]] = {}
    for entry in published():
        for name, row in sets.items():
            if published_name(name) == entry.data:
                group = entry.method, entry.source, entry.backbone, entry.protocol, entry.comparable
                found.setdefault(group, {})[name] = entry.value, _against(entry, row)
    result = []
    for (method, source, backbone, protocol, _), cells in found.items():
        comparable = frozenset(name for name, (_, against) in cells.items() if not against)
        reasons = dict.fromkeys(against for _, against in cells.values() if against)
        why = "same backbone, test images and protocol; prompts are the source's" if comparable else "; ".join(reasons)
        values = {name: value for name, (value, _) in cells.items()}
        result.append(Beside(method, source, backbone, protocol or "not known", values, comparable, why))
    return sorted(result, key=lambda one: not one.comparable)


def published_name(data: str) -> str:
    """What published tables call one of our data sets."""
    return data.removesuffix("-coop")


def _against(entry: Entry, row: Result) -> str:
    """Why a number cannot be compared with rows like this one; empty if it can."""
    if row.key.backbone == "embedded":
        return STAND_IN
    if not entry.comparable:
        return entry.why
    if BACKBONES.get(entry.backbone) != row.key.backbone:
        return f"our backbone is {row.key.backbone}"
    if entry.split != row.source["layout"]:
        return f"our split is another: {row.source['split']}"
    if row.key.protocol != entry.protocol and not (entry.protocol == "zero-shot" and row.key.protocol in PLAIN):
        return f"our protocol is {row.key.protocol}"
    # Profiles cut the images that are adapted to: the test images of an inductive protocol stay.
    whole = row.key.profile == "full" or (entry.protocol == "zero-shot" and row.key.protocol == "inductive")
    return "" if whole else f"our profile is {row.key.profile}"
