"""The model behind the page: taught again in the background whenever somebody answered, and asking for more questions in time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from finelens.classes.hints import plain
from finelens.evaluation.prequential import believed_accuracy
from finelens.reporting.review.belief import Belief
from finelens.reporting.review.log import FILE, Answer, AnswerLog, Question, as_told
from finelens.reporting.review.plan import LEFT, Left, Plan
from finelens.reporting.review.subject import Subject
from finelens.reporting.review.trials import Trials
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
        self._trials: Trials | None = None
        self._exhausted: tuple[int, int] | None = None
        self._left: tuple[tuple[int, int], Left] | None = None
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
                if self.belief.version != self.log.version[0]:
                    old = self.belief
                    self.belief = replace(self._taught(), progress=old.progress, only_ones=old.only_ones, tested=old.tested)
                # One part of ten between two lessons: who answers without a pause gets both.
                self._test()
            except Exception as error:  # the answers are safe, and the page says what went wrong
                version = self.log.version[0]
                self.belief, self._trials = replace(self.belief, version=version, tested=version, error=f"{error}"), None
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
        """Whether there is something to learn, to ask or to test."""
        return self.learning or self.belief.tested != self.belief.version

    @property
    def learning(self) -> bool:
        """Whether there is something that the model does not know yet, or more to ask."""
        return self.belief.version != self.log.version[0] or self._short()

    def open(self) -> list[Question]:
        """Questions about these photographs that nobody did anything with; a log may hold those of others."""
        return [question for question in self.log.open() if any(path in self.subject.place for path in question.paths)]

    @property
    def left(self) -> Left:
        """What there is to ask beside the questions of the log."""
        version, known = self.log.version, self._left
        if known is None or known[0] != version:
            # Whatever happens meanwhile has another version.
            self._left = known = version, self._plan.left(self.subject, self.log)
        return known[1]

    @property
    def end(self) -> int:
        """The goal, or all looks that there can be where those are fewer; grows with the goal and where somebody takes something back."""
        return min(self.goal, self._asked() + self.left.most)

    @property
    def certain(self) -> bool:
        """Whether there are as many looks as :attr:`end` in any case, and not only where groups come apart."""
        return self._asked() + self.left.fewest >= self.end

    def classes(self, answers: Iterable[Answer] | None = None) -> tuple[str, ...]:
        """The list, and the names that persons thought of in their order, in all answers or in some."""
        given = self.log.answers().values() if answers is None else answers
        new = [answer.label for answer in given if answer.label and answer.label not in self.subject.classes]
        return (*self.subject.classes, *dict.fromkeys(new))

    def labels(self) -> dict[str, str]:
        """All answers about these photographs."""
        return {path: answer.label for path, answer in self.answers().items()}

    def answers(self) -> dict[str, Answer]:
        """Those that the run was given, and those of the log."""
        place, told = self.subject.place, self.subject.told
        given = {path: as_told(label, told.get(plain(path))) for path, label in self.subject.given.items()}
        return given | {path: answer for path, answer in self.log.answers().items() if path in place}

    def _taught(self) -> Belief:
        version = self.log.version[0]
        self._answers = answers = self.answers()
        classes = self.classes(answers.values())
        index = {name: i for i, name in enumerate(classes)}
        place = self.subject.place
        pairs = sorted((place[path], index[answer.label]) for path, answer in answers.items() if answer.label and path in place)
        rows, labels = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
        p = self.subject.learner.posteriors(Known(rows, labels), len(classes)) if classes else torch.zeros(len(place), 0)
        # An answer that was taken back leaves no point behind.
        self._curve = [*(point for point in self._curve if point[0] < len(answers)), *([(len(answers), p.argmax(1))] if classes else [])]
        if len(self._curve) > REMEMBERED:
            del self._curve[1::2]
        return Belief(version, classes, p)

    def _test(self) -> None:
        """One part of the tests of the present answers, or of those that were begun before the last."""
        belief = self.belief
        if self._trials is None and belief.tested == belief.version:
            return
        if self._trials is None:
            self._trials = Trials(self.subject, self._answers, belief.classes, belief.version)
        trials = self._trials
        if trials.step():
            return
        q, answers = belief.p.numpy(), len(self._answers)
        curve = [(count, believed_accuracy(q, guesses.numpy())) for count, guesses in self._curve]
        # Of a look at a group come several.
        found = trials.progress(curve, round(LOOKS * max(1.0, answers / max(1, len(self.log.done())))))
        self.belief, self._trials = replace(belief, progress=found, only_ones=trials.lost_alone(), tested=trials.version), None

    def _short(self) -> bool:
        """Whether questions run out before the goal."""
        return len(self.open()) < LEFT and self._asked() < self.goal and self._exhausted != (self.goal, self.log.version[0])

    def _asked(self) -> int:
        """Looks that were done or are open."""
        return len(self.log.done()) + len(self.open())

    def _ask(self) -> None:
        if self._short():
            found = self._plan(self.subject, self.log, self.belief, self.goal - self._asked())
            if found:
                self.log.ask(found)
            else:
                self._exhausted = (self.goal, self.log.version[0])

    def counts(self) -> dict[str, int]:
        """Photographs by who answered them."""
        place = self.subject.place
        return dict(Counter(answer.who for path, answer in self.log.answers().items() if answer.source != FILE and path in place))


def contradictions(log: AnswerLog) -> dict[str, dict[str, str]]:
    """What different persons said of a photograph, where it is not the same."""
    return {path: said for path, said in log.said().items() if len(set(said.values())) > 1}
