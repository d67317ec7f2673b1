"""Sets of one folder per class that have no split of their own: a part of each class, drawn for good by the names of the files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from pathlib import Path

from finelens.bench.sets.common import listed_part, spoken
from finelens.bench.sets.data import DataSet, counted_out
from finelens.classes.names import check_names
from finelens.images.discover import discover

DRAW = "finelens split 0"


def read_drawn(
    name: str,
    folder: Path,
    percent: int,
    templates: tuple[str, ...] | None = None,
    *,
    called: Mapping[str, str] | None = None,
    left_out: Collection[str] = (),
) -> DataSet:
    """A data set from ``CLASS/*``: of each class ``percent`` for training, rounded, at least one; the rest for testing.

    The images of a class are sorted by the hash of :data:`DRAW` and ``CLASS/FILE``; the first ones are for training. So the draw depends on names
    alone, and an image that is missing moves no more than one other.

    Args:
        name: Name of the set.
        folder: Holds the class folders.
        percent: Share of the training part.
        templates: Prompts of the set.
        called: Our names of classes whose folder's name is none.
        left_out: Folders that are no class.

    Raises:
        UserError: There is no image.
    """
    by_class: dict[str, list[str]] = {}
    found, outside = discover(folder), []
    for image in found:
        own, slash, _ = image.name.partition("/")
        if not slash:
            outside.append(image.name)
        elif own not in left_out:
            by_class.setdefault(own, []).append(image.name)
    names = sorted(by_class)
    parts: tuple[list[tuple[str, int]], list[tuple[str, int]]] = [], []
    for label, title in enumerate(names):
        order = sorted(by_class[title], key=lambda path: hashlib.sha256(f"{DRAW} {path}".encode()).digest())
        count = max(1, math.floor(len(order) * percent / 100 + 0.5))
        for part, paths in zip(parts, (order[:count], order[count:]), strict=True):
            part.extend((path, label) for path in sorted(paths))
    digest = hashlib.sha256("\n".join([*(path for path, _ in parts[0]), ";", *(path for path, _ in parts[1])]).encode()).hexdigest()
    return DataSet(
        name=name,
        class_names=tuple(check_names([(called or {}).get(title, spoken(title)) for title in names], source=f"folders of {folder}")),
        train=listed_part(folder, parts[0], f"{folder}, training part"),
        test=listed_part(folder, parts[1], f"{folder}, test part"),
        layout="drawn",
        split=f"{percent} % of each class drawn by finelens ({len(parts[0])} train, {len(parts[1])} test, sha256 {digest[:16]})",
        templates=templates,
        left_out=(*counted_out("files in no class folder", outside), *found.remarks),
    )
