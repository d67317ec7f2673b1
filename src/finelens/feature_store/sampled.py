"""A feature folder of more photographs than memory holds: a part of them as a feature file, and all of them as rows that are read some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from finelens.feature_store.folder import FeatureFolder
from finelens.images.load import Tally
from finelens.protocol import ImageRecord

# Rows of a folder from which on a run does not hold them all, and of the part that its measures and its page rest on then.
MANY, PART = 1 << 17, 1 << 15


class FolderRows:
    """One kind of feature of all photographs of a folder that have any, in the order of its files, as :class:`~finelens.protocol.Rows`.

    Shards are memory-mapped, one at a time; the first time that one is opened its SHA-256 is checked.

    Args:
        folder: The folder.
        kind: ``global`` or ``cls``.
    """

    def __init__(self, folder: FeatureFolder, kind: str) -> None:
        self._folder, self._kind = folder, kind
        self._starts = [0, *accumulate(entry.rows for entry in folder.shards)]
        self._checked: set[int] = set()
        self._width: int | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """The columns, as one feature space."""
        if self._width is None:
            self._width = self._open(next(i for i, entry in enumerate(self._folder.shards) if entry.rows)).shape[1]
        return (self._width,)

    def __len__(self) -> int:
        """How many photographs have features."""
        return self._starts[-1]

    def records(self) -> Iterator[ImageRecord]:
        """The photographs that have features, with the position of each; the tables are not compared with the manifest."""
        good = (record for table in self._folder.records() for record in table if record.sample_id is not None)
        return (replace(record, index=row) for row, record in enumerate(good))

    def parts(self, size: int) -> Iterator[Tensor]:
        """All rows in their order; a chunk may reach over the end of a shard.

        Raises:
            UserError: A shard is missing, or not the one that the manifest names.
        """
        left: list[Tensor] = []
        for number, entry in enumerate(self._folder.shards):
            rows, start = self._open(number) if entry.rows else torch.zeros(0, 0), 0
            while start < entry.rows:
                part = rows[start : start + size - sum(map(len, left))]
                start += len(part)
                left.append(part.float())
                if sum(map(len, left)) == size:
                    yield left[0] if len(left) == 1 else torch.cat(left)
                    left = []
            # What is kept of a shard must not keep it open.
            left = [part.clone() for part in left]
        if left:
            yield torch.cat(left)

    def at(self, positions: Tensor) -> Tensor:
        """Some rows; each shard is opened once."""
        found = torch.empty(len(positions), *self.widths)
        of_shard = torch.searchsorted(torch.tensor(self._starts), positions, right=True) - 1
        for number in of_shard.unique().tolist():
            own = (of_shard == number).nonzero()[:, 0]
            found[own] = self._open(number)[positions[own] - self._starts[number]].float()
        return found

    def _open(self, number: int) -> Tensor:
        rows = self._folder.rows_of(number, self._kind, check=number not in self._checked)
        self._checked.add(number)
        return rows


@dataclass(frozen=True)
class Part:
    """Some photographs of a folder.

    Attributes:
        records: Theirs.
        tensors: ``global`` and ``cls`` of those with features, in the order of the records.
        places: Which rows of the folder these are.
        counts: How many files the folder has of each status, ``ok`` first.
    """

    records: list[ImageRecord]
    tensors: dict[str, Tensor]
    places: list[int]
    counts: dict[str, int]


def part_of(folder: FeatureFolder, most: int, also: Set[str] = frozenset()) -> Part:
    """At most so many of a folder's photographs with features, evenly spread, and those of some names besides.

    Args:
        folder: The folder.
        most: How many.
        also: Names of files that are wanted in any case, with features or without.

    Raises:
        UserError: A shard is missing, or not the one that the manifest names.
    """
    rows = folder.rows
    wanted = min(rows, most)
    found = Part([], {}, [], {})
    parts: list[dict[str, Tensor]] = []
    tally, seen, taken = Tally(), 0, 0
    for table, tensors in folder.by_shard():
        tally.add(table)
        own, row = [], seen
        for record in table:
            good = record.sample_id is not None
            # Of position i among the wanted, the row is i rows / wanted.
            due = good and taken < wanted and taken * rows // wanted == row
            taken += due
            if due or record.name in also:
                found.records.append(record)
                own += [row] * good
            row += good
        found.places.extend(own)
        parts.append({name: values[[place - seen for place in own]].float() for name, values in tensors.items()})
        seen = row
    return replace(found, tensors={name: torch.cat([part[name] for part in parts]) for name in parts[0]}, counts=tally.counts)
