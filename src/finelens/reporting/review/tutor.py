"""The model behind the page: taught again in the background whenever somebody answered, and asking for more questions in time."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from finelens.evaluation.prequential import Progress, believed_accuracy, drawn_answers, progress
from finelens.reporting.review.belief import Belief
from finelens.reporting.review.log import FILE, AnswerLog, Question
from finelens.reporting.review.plan import LEFT, Plan
from finelens.reporting.review.subject import Subject
from finelens.solvers.known import Known

# Earlier models that the curve of accuracy is drawn through.
REMEMBERED = 24
# Further looks whose gain is foretold.
LOOKS = 10


class Tutor(threading.Thread):
    """Teaches one log's answers to one learner, the newest always first. An answer never waits for it.

    Args:
        subject: The photographs.
        log: Questions and answers.
        plan: Chooses questions.
        goal: Looks that the person wants to take; may be raised.
    """

    def __init__(self, subject: Subject, log: AnswerLog, plan: Plan, goal: int) -> None:
        super().__init__(daemon=True, name="tutor")
        self.subject, self.log, self.goal = subject, log, goal
        self.changed = threading.Condition()
        self._plan, self._stopped = plan, False
        self._curve: list[tuple[int, Tensor]] = []
        self._exhausted: tuple[int, int] | None = None
        self._most = 0
        self.belief = self._taught()
        self._ask()

    def run(self) -> None:
        """Learn until :meth:`stop`."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self._stopped or self.busy)
                if self._stopped:
                    return
            try:
                belief = self._taught()
            except Exception as error:  # the answers are safe, and the page says what went wrong
                belief = replace(self.belief, version=self.log.version[0], error=f"{error}")
            self.belief = belief
            self._ask()
            self.tell()

    def stop(self) -> None:
        """End after the present lesson."""
        with self.changed:
            self._stopped = True
            self.changed.notify_all()

    def tell(self) -> None:
        """Something changed: wake whoever waits."""
        with self.changed:
            self.changed.notify_all()

    @property
    def busy(self) -> bool:
        """Whether there is something that the model does not know yet, or more to ask."""
        return self.belief.version != self.log.version[0] or self._short()

    @property
    def end(self) -> int:
        """The goal, or all looks that there can be where those are fewer."""
        return min(self.goal, self._most)

    def classes(self) -> tuple[str, ...]:
        """The list, and the names that persons thought of in their order."""
        new = [answer.label for answer in self.log.answers().values() if answer.label and answer.label not in self.subject.classes]
        return (*self.subject.classes, *dict.fromkeys(new))

    def labels(self) -> dict[str, str]:
        """All answers about these photographs: those that the run was given, and those of the log."""
        place = self.subject.place
        return self.subject.given | {path: answer.label for path, answer in self.log.answers().items() if path in place}

    def _taught(self) -> Belief:
        version, classes = self.log.version[0], self.classes()
        index = {name: i for i, name in enumerate(classes)}
        place = self.subject.place
        pairs = sorted((place[path], index[label]) for path, label in self.labels().items() if label and path in place)
        rows, labels = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
        p = self.subject.learner.posteriors(Known(rows, labels), len(classes)) if classes else torch.zeros(len(place), 0)
        return Belief(version, classes, p, len(pairs), self._progress(p, index) if classes else None)

    def _progress(self, p: Tensor, index: dict[str, int]) -> Progress | None:
        tests = self._tests()
        if not tests:
            return None
        place, answered = self.subject.place, {self.subject.place[path] for path in self.labels() if path in self.subject.place}
        drawn = drawn_answers(self.subject.drawn, answered)
        # An answer that was taken back leaves no point behind.
        self._curve = [*(point for point in self._curve if point[0] < len(answered)), (len(answered), p.argmax(1))]
        if len(self._curve) > REMEMBERED:
            del self._curve[1::2]
        q = p.numpy()
        return progress(
            [len(index) + 1 if label is None else index[label] if label else -1 for _, label in tests],
            [index.get(question.guess or "", len(index)) for question, _ in tests],
            [place[question.paths[0]] in drawn for question, _ in tests],
            [question.speaks_for for question, _ in tests],
            classes=len(index),
            learnt=[question.learnt for question, _ in tests],
            curve=[(count, believed_accuracy(q, guesses.numpy())) for count, guesses in self._curve],
            # Of a look at a group come several.
            another=round(LOOKS * max(1.0, len(self.log.answers()) / max(1, len(self.log.done())))),
        )

    def _tests(self) -> list[tuple[Question, str | None]]:
        """Questions with the first answer about their first photograph; None where all that is known is that the guess was wrong.

        The others of a group are alike, and test the model no more.
        """
        found: dict[str, tuple[Question, str | None]] = {}
        for act in self.log.done_by_persons():
            if act.label is not None:
                question = self.log.questions[act.question]
                path = question.paths[0]
                if path in self.subject.place and (path not in act.odd or act.label == question.guess):
                    found.setdefault(path, (question, None if path in act.odd else act.label))
        return list(found.values())

    def _short(self) -> bool:
        """Whether questions run out before the goal."""
        open_, done = len(self.log.open()), len(self.log.done())
        return open_ < LEFT and open_ + done < self.goal and self._exhausted != (self.goal, self.log.version[0])

    def _ask(self) -> None:
        if self._short():
            left = self.goal - len(self.log.done()) - len(self.log.open())
            found = self._plan(self.subject, self.log, self.belief, left)
            if found:
                self.log.ask(found)
            else:
                self._exhausted = (self.goal, self.log.version[0])
        self._most = len(self.log.done()) + len(self.log.open()) + self._plan.most(self.subject, self.log)

    def counts(self) -> dict[str, int]:
        """Photographs by who answered them."""
        place = self.subject.place
        return dict(Counter(answer.who for path, answer in self.log.answers().items() if answer.source != FILE and path in place))


def contradictions(log: AnswerLog) -> dict[str, dict[str, str]]:
    """What different persons said of a photograph, where it is not the same."""
    return {path: said for path, said in log.said().items() if len(set(said.values())) > 1}
