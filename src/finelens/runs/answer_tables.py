"""The files that ``predict`` writes as answers come, a line for each row: predictions, conformal sets, answers by rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finelens.classes.taxonomy import saved_taxonomy
from finelens.core.console import Console
from finelens.evaluation.conformal import Conformal
from finelens.runs.arguments import PredictArguments
from finelens.runs.by_rank import RankTable
from finelens.runs.folder import RunFolder
from finelens.runs.predict import Predictions
from finelens.runs.sets import set_sizes, sets_header, sets_of, sets_text
from finelens.runs.shard import ranks_path, sets_path
from finelens.storage.cells import BOM
from finelens.storage.predictions import PredictionRow, predictions_header, predictions_text


class AnswerTable:
    """One of them: the predictions; others say what they hold instead.

    Args:
        path: The file.
        header: Its first line.
    """

    def __init__(self, path: Path, header: str) -> None:
        self.path, self.header = path, header

    def take_up(self, written: Path) -> None:
        """Count what an earlier command wrote. Of predictions, :class:`~finelens.runs.account.Account` does."""

    def lines(self, part: Predictions, rows: Sequence[PredictionRow], probabilities: np.ndarray) -> str:
        """The lines of a group.

        Args:
            part: What the model answered.
            rows: The same as rows of the predictions.
            probabilities: Calibrated, of the images that could be read, (N, C).
        """
        return predictions_text(rows)

    def say(self, console: Console) -> None:
        """Say what is to be said of the whole."""


class SetTable(AnswerTable):
    """Conformal sets.

    Args:
        path: The file.
        bom: Byte-order mark, or nothing.
        classes: Class names.
        rule: Which classes are in a set.
    """

    def __init__(self, path: Path, bom: str, classes: Sequence[str], rule: Conformal) -> None:
        super().__init__(path, bom + sets_header())
        self._classes, self._rule = classes, rule
        self._sizes = Counter[int]()

    def take_up(self, written: Path) -> None:
        """Count the sizes of sets that an earlier command wrote."""
        self._sizes.update(set_sizes(written))

    def lines(self, part: Predictions, rows: Sequence[PredictionRow], probabilities: np.ndarray) -> str:
        """A line for each row: the classes that cannot be ruled out."""
        sets = sets_of(part, self._classes, self._rule)
        self._sizes.update(len(own) for own in sets if own)
        return sets_text(part.records, sets)

    def say(self, console: Console) -> None:
        """Say how large sets are, and what they promise."""
        sizes = self._sizes
        mean = f", {sum(size * count for size, count in sizes.items()) / sizes.total():.1f} classes in a set on average" if sizes else ""
        console.say(f"conformal sets{mean}; {self._rule.guarantee()}")


class RankAnswers(AnswerTable):
    """Answers by rank, where the run's class list was a table with ranks.

    Args:
        path: The file.
        bom: Byte-order mark, or nothing.
        ranks: Makes the lines.
    """

    def __init__(self, path: Path, bom: str, ranks: RankTable) -> None:
        super().__init__(path, bom + ranks.header)
        self._ranks = ranks

    def lines(self, part: Predictions, rows: Sequence[PredictionRow], probabilities: np.ndarray) -> str:
        """A line for each row: its class at every rank."""
        return self._ranks.lines(rows, [record.index for record in part.records], probabilities)


def tables_of(question: PredictArguments, classes: Sequence[str], rule: Conformal | None) -> list[AnswerTable]:
    """The files of a command, the predictions first.

    Args:
        question: What is asked.
        classes: Names of the classes that answers are among.
        rule: Of the conformal sets; None without them.
    """
    bom = BOM if question.csv_bom else ""
    tables = [AnswerTable(question.target, predictions_header(bom=question.csv_bom))]
    if rule is not None:
        tables.append(SetTable(sets_path(question.target), bom, classes, rule))
    ranks = _rank_table(question)
    return tables if ranks is None else [*tables, RankAnswers(ranks_path(question.target), bom, ranks)]


def _rank_table(question: PredictArguments) -> RankTable | None:
    """Lines of answers by rank, where the run's class list was a table with ranks and answers are among its classes."""
    if question.classes is not None:
        return None
    folder = RunFolder.open(question.run, lock=False)
    taxonomy = saved_taxonomy(folder.taxonomy_path)
    return RankTable(taxonomy, folder.config.rank_floor) if taxonomy is not None and taxonomy.ranks else None
