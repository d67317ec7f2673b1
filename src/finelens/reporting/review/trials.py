"""Answers as tests of the model that they teach, as the second round will test it: each is put to a model that has not learnt its look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from finelens.evaluation.answered import lost_alone, seen_once
from finelens.evaluation.prequential import Progress, drawn_answers, progress
from finelens.reporting.review.log import Answer
from finelens.reporting.review.subject import Subject
from finelens.solvers.known import Known


class Trials:
    """The answers of one moment, tested part by part, since that takes as long as ten lessons.

    Args:
        subject: The photographs.
        answers: By path, about these photographs.
        classes: C names, those of the answers among them.
        version: Of the answers.
    """

    def __init__(self, subject: Subject, answers: Mapping[str, Answer], classes: Sequence[str], version: int) -> None:
        index, place = {name: i for i, name in enumerate(classes)}, subject.place
        found = sorted((place[path], path, answer) for path, answer in answers.items() if path in place)
        self.subject, self.version, self._classes = subject, version, len(classes)
        self._rows = [row for row, _, _ in found]
        self._labels = np.array([index.get(answer.label, -1) for _, _, answer in found], dtype=np.int64)
        self._is_test = np.array([answer.how.tests(path) for _, path, answer in found], dtype=bool)
        names = [answer.how.look(path) or path for _, path, answer in found]
        number = {look: i for i, look in enumerate(dict.fromkeys(names))}
        self._looks = np.array([number[name] for name in names], dtype=np.int64)
        self._named = torch.as_tensor(self._labels >= 0).nonzero()[:, 0]
        rows, labels, looks = (torch.as_tensor(values)[self._named] for values in (self._rows, self._labels, self._looks))
        self._known = Known(rows, labels, looks)
        self._guesses, self._changed = torch.full((len(found),), -1), torch.zeros(len(found), dtype=torch.float64)
        self._parts = subject.learner.parts_left_out(self._known, len(classes)) if self._known.looks > 1 else iter(())

    def step(self) -> bool:
        """Test one part; False where none is left."""
        part = next(self._parts, None)
        if part is not None:
            at = self._named[part[0]]
            self._guesses[at], self._changed[at] = part[1], part[2]
        return part is not None

    def lost_alone(self) -> int:
        """Why nothing is told, see :func:`~finelens.evaluation.answered.lost_alone`; 0 where that is no reason."""
        return lost_alone(self._tests(), self._guesses.numpy(), seen_once(self._labels, self._looks))

    def progress(self, curve: Sequence[tuple[int, float]], another: int) -> Progress | None:
        """What they say; arguments as for :func:`~finelens.evaluation.prequential.progress`. None where none is a test."""
        if self._known.looks < 2 or not (self._tests() >= 0).any():
            return None
        drawn = drawn_answers(self.subject.drawn, self.subject.with_copies(self._rows))
        speaks_for = np.ones(len(self._rows))
        speaks_for[self._named.numpy()] = self.subject.learner.spoken_for(self._known).numpy()
        random = [row in drawn for row in self._rows]
        tests = (self._tests(), self._guesses.numpy(), random, speaks_for)
        return progress(*tests, classes=self._classes, changed=self._changed.numpy(), curve=curve, another=another)

    def _tests(self) -> np.ndarray:
        return np.where(self._is_test, self._labels, -1)
