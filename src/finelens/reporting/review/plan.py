"""What is asked next: a few questions at a time, by the answers that there are and by what the model believes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from finelens.classes.hints import looks_of_answers
from finelens.evaluation.prequential import drawn_places
from finelens.reporting.review.belief import Belief
from finelens.reporting.review.log import AGAIN, AnswerLog, Question
from finelens.reporting.review.order import Look
from finelens.reporting.review.subject import Subject
from finelens.reporting.review.worth import DRAWN, reason
from finelens.solvers.asking import ask
from finelens.solvers.groups import SIZE as GROUP_SIZE
from finelens.solvers.groups import group_around


class Left(NamedTuple):
    """What there is beside the looks that were done and those that are open.

    Attributes:
        free: Photographs that may be asked about at once.
        fewest: Looks that there are in any case.
        most: Looks that there can be, were all but one photograph of each open group taken out.
    """

    free: int
    fewest: int
    most: int


class Plan(Protocol):
    """What makes questions."""

    def __call__(self, subject: Subject, log: AnswerLog, belief: Belief, left: int, /) -> list[Question]:
        """The next questions.

        Args:
            subject: The photographs.
            log: What was asked and answered.
            belief: Of the model.
            left: Looks that the person still wants to take.
        """
        ...

    def left(self, subject: Subject, log: AnswerLog, /) -> Left:
        """What there is beside the questions of the log."""
        ...


# Questions that are chosen at a time, and how few are left when more are chosen: the model learns while those are answered.
ROUND, LEFT = 8, 4
# With more at once, choosing takes longer than a look.
MOST = 100
# A smaller group is no less work than a photograph.
LEAST = 4
# Classes that are expected where none has a name.
UNNAMED = 10


class ByWorth:
    """The most valuable questions first.

    Every fifth is a single photograph, drawn at random, which is what the estimate of accuracy rests on. The others are groups, which teach more by
    the look (docs/review.md), where at least four photographs are left that are no near-copies. What was taken out of a group may be in another; if
    it was the one that the group is around, it is asked alone.
    """

    def left(self, subject: Subject, log: AnswerLog, /) -> Left:
        """All photographs that nobody answered, in full groups or each alone."""
        busy = _busy(subject, log)
        free = len({identity for row, identity in enumerate(subject.ids) if row not in busy})
        open_groups = (sum(path in subject.place for path in question.paths) for question in log.open())
        return Left(free, -(-free // GROUP_SIZE), free + sum(max(0, size - 1) for size in open_groups))

    def __call__(self, subject: Subject, log: AnswerLog, belief: Belief, left: int, /) -> list[Question]:
        """The next of them."""
        p, classes = belief.p, belief.classes
        busy, out = _busy(subject, log), _taken_out(subject, log)
        taken = torch.tensor(sorted(busy), dtype=torch.int64)
        doubt = 1 - p.amax(1) if p.shape[1] else torch.ones(len(p))
        count = min(left, MOST)
        asked = ask(subject.looks, doubt, taken, count, classes=len(classes) or UNNAMED)
        parts = zip(asked.rows.tolist(), asked.speaks_for.tolist(), strict=True)
        worth = iter([(row, reason(round(size))) for row, size in parts])
        drawn = iter([(row, DRAWN) for row in subject.drawn])
        found: list[Question] = []
        for number, at_random in enumerate(drawn_places(_asked(subject, log), min(count, ROUND)), log.next_id):
            chosen = _first(drawn, busy) if at_random else _first(worth, busy)
            if chosen is None:
                continue
            row, why = chosen
            members = [row]
            if not at_random and row not in out:
                free = torch.ones(len(subject.paths), dtype=torch.bool)
                free[sorted(busy)] = False
                near = group_around(subject.looks, row, free).tolist()
                members = near if len(near) >= LEAST else members
            busy |= subject.with_copies(members)
            found.append(Question(number, tuple(subject.paths[i] for i in members), why))
        return found


by_worth = ByWorth()


@dataclass(frozen=True)
class InOrder:
    """Asks about photographs in an order that is made already, one at a time.

    Args:
        looks: The order.
    """

    looks: Sequence[Look]

    def __call__(self, subject: Subject, log: AnswerLog, belief: Belief, left: int, /) -> list[Question]:
        """The next that nobody answered."""
        return [Question(number, (look.path,), look.why) for number, look in enumerate(self._free(subject, log)[: min(left, ROUND)], log.next_id)]

    def left(self, subject: Subject, log: AnswerLog, /) -> Left:
        """Those of the order that nobody answered."""
        free = len(self._free(subject, log))
        return Left(free, free, free)

    def _free(self, subject: Subject, log: AnswerLog) -> list[Look]:
        busy = _busy(subject, log)
        return [look for look in self.looks if look.path in subject.place and subject.place[look.path] not in busy]


def _first(candidates: Iterator[tuple[int, str]], busy: set[int]) -> tuple[int, str] | None:
    return next((found for found in candidates if found[0] not in busy), None)


def _asked(subject: Subject, log: AnswerLog) -> int:
    """Looks before the next: questions of the log, and those of the answers that came with a file."""
    questions = [question for question in log.questions.values() if question.why != AGAIN]
    here = {path for question in questions for path in question.paths}
    told = {**subject.told, **{path: answer.how for path, answer in log.answers().items()}}
    given = {*subject.given, *log.answers()} - here
    return len(questions) + len(looks_of_answers(given, told))


def _busy(subject: Subject, log: AnswerLog) -> set[int]:
    """Rows that have an answer, are being asked, or were skipped: of a group the one that was chosen."""
    paths = set(subject.given) | set(log.answers())
    paths |= {path for question in log.open() for path in question.paths}
    paths |= {log.questions[act.question].paths[0] for act in log.done_by_persons() if act.label is None}
    return subject.with_copies(subject.place[path] for path in paths if path in subject.place)


def _taken_out(subject: Subject, log: AnswerLog) -> set[int]:
    """Rows that a group was around and that were odd in it."""
    chosen = ((log.questions[act.question].paths[0], act.odd) for act in log.done_by_persons())
    return {subject.place[path] for path, odd in chosen if path in odd and path in subject.place}
