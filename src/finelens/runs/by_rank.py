"""Answers by rank: the table beside the predictions, and accuracy at each rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from finelens.classes.taxonomy import GROUP, Taxonomy
from finelens.core.schemas import SURE_COLUMNS
from finelens.evaluation.ranks import deepest, rank_accuracy, summed
from finelens.storage.cells import csv_text, escape_cell
from finelens.storage.predictions import PredictionRow

# What ``sure_rank`` calls the classes of the list themselves.
NAME = "name"


class RankTable:
    """Lines of ``predictions_ranks.csv``.

    Args:
        taxonomy: Of the classes; it has ranks.
        floor: Probability that the narrowest sure rank has at least.
    """

    def __init__(self, taxonomy: Taxonomy, floor: float) -> None:
        self._taxonomy, self._floor = taxonomy, floor
        self._values = {rank: taxonomy.values(rank) for rank in taxonomy.ranks}
        # The group is a sum of its own; it stands in no line with ranks unless there are none.
        self._line = [rank for rank in taxonomy.ranks if rank != GROUP] or [GROUP]

    @property
    def header(self) -> str:
        """The first line."""
        return csv_text([["path", *(column for rank in self._taxonomy.ranks for column in (rank, f"{rank}_probability")), *SURE_COLUMNS]])

    def lines(self, rows: Sequence[PredictionRow], places: Sequence[int | None], probabilities: np.ndarray) -> str:
        """A line for each row.

        Args:
            rows: Predictions, answers of people among them.
            places: Position of each row in the probabilities, as names may stand twice; None where there is none.
            probabilities: Of classes, (N, C).
        """
        read = [i for i, place in enumerate(places) if place is not None and rows[i].status == "ok" and rows[i].label is not None]
        own = np.stack([self._of(rows[i], probabilities[places[i]]) for i in read]) if read else np.zeros((0, len(self._taxonomy.names)))
        by_rank = {rank: summed(own, members, len(names)) for rank, (names, members) in self._values.items()}
        sure = deepest([*(by_rank[rank] for rank in self._line), own], self._floor) if read else None
        text: dict[int, list[str]] = {}
        for k, i in enumerate(read):
            cells = [cell for rank in self._taxonomy.ranks for cell in self._best(rank, by_rank[rank][k])]
            assert sure is not None
            text[i] = [*cells, *self._sure(int(sure.rank[k]), int(sure.name[k]), float(sure.probability[k]))]
        empty = [""] * (2 * len(self._taxonomy.ranks) + 3)
        return csv_text([escape_cell(cell) for cell in (row.path, *text.get(i, empty), row.status)] for i, row in enumerate(rows))

    def _of(self, row: PredictionRow, p: np.ndarray) -> np.ndarray:
        """Probabilities (C,) of a row; a person is sure."""
        if not row.answered:
            return p
        sure = np.zeros(len(p))
        sure[self._taxonomy.names.index(str(row.label))] = 1.0
        return sure

    def _best(self, rank: str, p: np.ndarray) -> tuple[str, str]:
        best = int(p.argmax())
        return self._values[rank][0][best], f"{p[best]:.6g}"

    def _sure(self, rank: int, name: int, probability: float) -> tuple[str, str, str]:
        if rank < 0:
            return "", "", ""
        names = self._taxonomy.names if rank == len(self._line) else self._values[self._line[rank]][0]
        return (NAME if rank == len(self._line) else self._line[rank]), names[name], f"{probability:.6g}"


def accuracy_by_rank(taxonomy: Taxonomy, targets: np.ndarray, probabilities: np.ndarray, zero_shot: np.ndarray) -> list[dict[str, Any]]:
    """Accuracy at each rank: of its summed probabilities, and of the rank that the unadapted model's class is of.

    Args:
        taxonomy: Of the classes.
        targets: True classes, (N,).
        probabilities: Of classes, (N, C).
        zero_shot: The unadapted model's classes, (N,).
    """
    return [
        {
            "rank": rank,
            "names": len(names),
            "accuracy": (found := rank_accuracy(targets, summed(probabilities, members, len(names)).argmax(1), members))[0],
            "zero_shot_accuracy": rank_accuracy(targets, np.asarray(members)[zero_shot], members)[0],
            "n": found[1],
        }
        for rank, (names, members) in ((rank, taxonomy.values(rank)) for rank in taxonomy.ranks)
        if names
    ]


def say_ranks(found: Iterable[Mapping[str, Any]]) -> str:
    """Accuracies by rank in half a line; empty without ranks."""
    return "".join(f", {own['rank']} {own['accuracy']:.1%}" for own in found if own["n"])
