"""What a page may ask of a live review: the next look, an answer, a step back. It knows nothing of the web."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from finelens.classes.hints import hints_csv, how_given, plain, slip_of
from finelens.classes.labels import NONE_WORDS, UNANSWERED
from finelens.classes.names import check_names, match, normalise
from finelens.errors import UserError
from finelens.evaluation.answered import share_unnamed
from finelens.evaluation.prequential import LEAST_TESTS, Progress
from finelens.reporting.review.answers import answers_about, read_answers
from finelens.reporting.review.log import AGAIN, Act, AnswerLog, Question, as_told
from finelens.reporting.review.plan import Plan
from finelens.reporting.review.subject import Subject
from finelens.reporting.review.tutor import Tutor, contradictions
from finelens.reporting.thumbnails import Thumbnails
from finelens.storage.files import write_text
from finelens.storage.lock import Lock

# Longer sides of the pictures of a look at one photograph, of a group, and of either when somebody wants to see more.
LARGE, SMALL, LARGEST = 384, 224, 1024
# Fewest and most choices with a number key each.
CHOICES = (6, 9)
# Seconds without a sign of its page after which a look may be given to another one; an open page asks for news three times in these.
HELD = 60.0
# Most looks that a request may add, and those that the page offers to add.
MORE, OFFERED = 2000, 10
LONGEST_NAME = 60
# Answers that have to have tested the model before the page says that more are not worth it.
TO_STOP = 10


class Session:
    """The answers to one subject, by any number of pages.

    Args:
        subject: The photographs.
        hints: File to keep; beside it stands ``<name>.jsonl`` with all that was done.
        plan: Makes questions.
        goal: Looks that the person wants to take.

    Raises:
        UserError: The files cannot be read or written, or another program is answering into them.
    """

    def __init__(self, subject: Subject, hints: Path, plan: Plan, goal: int) -> None:
        self.subject, self.hints = subject, hints
        self._claim = Lock(hints.parent / f".{hints.name}.lock")
        with self._claim.claimed():
            self._kept = found = read_answers(hints)
            self._told = dict(subject.told) | (how_given(hints) or {})
            self.log = AnswerLog(hints.with_suffix(".jsonl"))
            # A review adds to a file and takes nothing out of it.
            self._others: dict[str, str] = {}
            self._take_edits(self._parted(found))
            self.tutor = Tutor(subject, self.log, plan, goal)
        self._lock = threading.RLock()
        self._held: dict[str, tuple[int, float]] = {}
        most = len(subject.paths)
        self._large = Thumbnails(subject.photos, limit=most, side=LARGE, crop=False)
        self._small = Thumbnails(subject.photos, limit=most, side=SMALL)
        self._largest = Thumbnails(subject.photos, limit=most, side=LARGEST, crop=False)
        self.tutor.start()

    def close(self) -> None:
        """End the lessons and give the files back."""
        self.tutor.stop()
        self._claim.release()

    def _parted(self, found: Mapping[str, str]) -> dict[str, str]:
        """Those of the answers in the hints file that are about this subject; the others are kept beside them."""
        place, classes, new_names = self.subject.place, self.subject.classes, self.subject.new_names
        own = {row: answers_about(place, classes, {row: label}, new_names=new_names) for row, label in found.items()}
        self._others |= {row: found[row] for row, answer in own.items() if not answer}
        return {path: label for answer in own.values() for path, label in answer.items()}

    def _reread(self) -> None:
        """Take what somebody wrote into the hints file since it was read or written here, which the next writing would lose."""
        found = read_answers(self.hints)
        self._told |= how_given(self.hints) or {}
        if news := self._parted({row: label for row, label in found.items() if self._kept.get(row) != label}):
            self.log.edited(news, self._told)

    def _take_edits(self, found: Mapping[str, str]) -> None:
        """What somebody wrote into the hints file since; the last change may not have reached it."""
        known = self.log.answers()
        news = {p: label for p, label in found.items() if p not in self.log.touched and (p not in known or known[p].label != label)}
        news = {path: label for path, label in news.items() if self.subject.given.get(path) != label or path in known}
        if news:
            self.log.edited(news, self._told)

    def answer(self, tab: str, who: str, question: int, label: str, odd: list[str]) -> None:
        """Keep an answer; on the disk when this returns.

        Raises:
            UserError: No such question, class or photograph, somebody made something else of the hints file, or the disk is full.
        """
        asked = self._question(question)
        seen = self.present(asked.paths)
        if not set(odd) < set(seen):
            raise UserError("take out photographs of the group, and not all of them; press S to skip it")
        gone = [path for path in asked.paths if path not in seen]
        self._act(tab, Act(question, self._named(label), _person(who), (*odd, *gone)))

    def skip(self, tab: str, who: str, question: int) -> None:
        """Pass over a question."""
        self._act(tab, Act(self._question(question).id, None, _person(who)))

    def undo(self, tab: str, who: str) -> Act | None:
        """Take back the last act of a person and give the look back to them; None where there is none."""
        with self._lock:
            self._reread()
            with self.log.together():
                act = self.log.undo(_person(who))
                if act is not None:
                    self._write()
            if act is not None:
                self._held[tab] = (act.question, time.monotonic())
        self.tutor.tell()
        return act

    def again(self, tab: str, path: str) -> None:
        """Put a photograph before a person once more."""
        if path not in self.subject.place:
            raise UserError("no such photograph in this run; reload the page")
        with self._lock:
            question = Question(self.log.next_id, (path,), AGAIN)
            self.log.ask([question])
            self._held[tab] = (question.id, time.monotonic())

    def go_on(self, more: int) -> None:
        """Raise the number of looks."""
        done = len(self.log.done()) + len(self.tutor.open())
        self.tutor.goal = max(self.tutor.goal, done) + max(1, min(more, MORE))
        self.tutor.tell()

    def look(self, tab: str) -> dict[str, Any] | None:
        """The question before a person, with its pictures; None where there is none at the moment."""
        with self._lock:
            question = self._next(tab)
        return None if question is None else self._shown(question)

    def large(self, question: int) -> list[str | None]:
        """Pictures of a question as large as a page can show them; None for a photograph that is not where it was."""
        return [self._largest.uri(path) for path in self.present(self._question(question).paths)]

    def wait(self, tab: str, seen: str, seconds: float) -> None:
        """Return when :meth:`stamp` is another one, or after some time; who waits keeps the look that is before them."""
        with self._lock:
            if tab in self._held:
                self._held[tab] = (self._held[tab][0], time.monotonic())
        with self.tutor.changed:
            self.tutor.changed.wait_for(lambda: self.stamp != seen, seconds)

    @property
    def stamp(self) -> str:
        """Changes with all that a page shows beside the look."""
        acts, questions = self.log.version
        return f"{acts}.{questions}.{self.tutor.belief.version}.{self.tutor.belief.tested}.{self.tutor.goal}"

    def state(self) -> dict[str, Any]:
        """What the page says beside the look."""
        belief, labels, log = self.tutor.belief, self.tutor.labels(), self.log
        stamp, acts = self.stamp, log.version[0]
        open_looks, left = len(self.tutor.open()), self.tutor.left
        named = set(labels.values())
        missing = [name for name in belief.classes if name not in named]
        return {
            "stamp": stamp,
            "looks": len(log.done()),
            "open": open_looks,
            "goal": self.tutor.end,
            "certain": self.tutor.certain,
            # Where others have all that is left nothing can be asked for, and still there may be more.
            "more": min(OFFERED, left.most) if left.free else 0,
            "remaining": open_looks + left.most,
            "answered": len(labels),
            "none": sum(not label for label in labels.values()),
            "known": belief.version,
            "acts": acts,
            "busy": self.tutor.learning,
            "error": belief.error,
            "new": list(self.tutor.classes()[len(self.subject.classes) :]),
            "missing": missing[:40],
            "lacking": len(missing),
            "people": self.tutor.counts(),
            "contradictions": [{"path": path, "said": list(said.items())} for path, said in self._contradictions(labels).items()][:40],
            "unnamed": self._unnamed(),
            "progress": None if belief.progress is None else _told(belief.progress, belief.only_ones),
        }

    def _contradictions(self, labels: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Labels by person of photographs that were named differently, and by file of copies of one photograph that were, under the first of them."""
        same: dict[str, dict[str, str]] = {}
        for path, identity in zip(self.subject.paths, self.subject.ids, strict=True):
            if path in labels:
                same.setdefault(identity, {})[path] = labels[path]
        copies = {next(iter(said)): said for said in same.values() if len(set(said.values())) > 1}
        return {**contradictions(self.log), **copies}

    def _unnamed(self) -> float | None:
        """Share of the photographs that are probably of classes that nobody has named; None where there is a list, or no answer."""
        found = self.tutor.answers()
        if self.subject.classes or not found:
            return None
        index = {name: i for i, name in enumerate(dict.fromkeys(answer.label for answer in found.values() if answer.label))}
        labels = np.array([index.get(answer.label, -1) for answer in found.values()])
        looks = np.unique([answer.how.look(path) or path for path, answer in found.items()], return_inverse=True)[1]
        return share_unnamed(labels, np.array([answer.how.tests(path) for path, answer in found.items()]), looks)

    def _act(self, tab: str, act: Act) -> None:
        with self._lock:
            self._reread()
            with self.log.together():
                self.log.act(act)
                self._write()
            self._held.pop(tab, None)
        self.tutor.tell()

    def _write(self) -> None:
        earlier = self._others | self.subject.given
        given = {path: as_told(label, self._told.get(plain(path))) for path, label in earlier.items()} | self.log.answers()
        labels = {path: answer.label for path, answer in given.items()}
        write_text(self.hints, hints_csv(labels, {plain(path): answer.how for path, answer in given.items()}))
        self._kept = read_answers(self.hints)

    def _question(self, number: int) -> Question:
        if number not in self.log.questions:
            raise UserError("no such question; reload the page")
        return self.log.questions[number]

    def _named(self, label: str) -> str:
        """The label as the classes spell it; empty for "none of these", as the reader of the hints file takes it."""
        classes = self.tutor.classes()
        if label in (known := match([label], classes)):
            return known[label]
        if not label or normalise(label) in NONE_WORDS:
            return ""
        if not self.subject.new_names:
            raise UserError(f"there is no class {label!r} in the list")
        if near := slip_of(label, self.subject.classes):
            raise UserError(f"{label!r} is not in the class list; did you mean {near!r}?")
        if label.strip() == UNANSWERED:
            raise UserError("press S to leave a photograph without an answer")
        return check_names([label])[0]

    def _next(self, tab: str) -> Question | None:
        now, waiting = time.monotonic(), self.tutor.open()
        own = self._held.get(tab)
        if own is not None and own[0] in {question.id for question in self.log.open()}:
            self._held[tab] = (own[0], now)
            return self.log.questions[own[0]]
        held = {number for other, (number, since) in self._held.items() if other != tab and now - since < HELD}
        free = [question for question in waiting if question.id not in held]
        if not free or len(self.log.done()) >= self.tutor.goal:
            return None
        self._held[tab] = (free[0].id, now)
        return free[0]

    def present(self, paths: Iterable[str]) -> list[str]:
        """Those that are of the run: others, which were when they were asked about, nobody can see or name."""
        return [path for path in paths if path in self.subject.place]

    def _shown(self, question: Question) -> dict[str, Any]:
        paths = self.present(question.paths)
        rows = [self.subject.place[path] for path in paths]
        belief = self.tutor.belief
        choices = belief.likeliest(rows, *CHOICES)
        further = belief.likeliest_of_some(rows, [name for name, _ in choices])
        # A name that somebody has just thought of is likely to be wanted again before the model knows it.
        choices += [(name, [0.0] * len(rows)) for name in self.tutor.classes() if name not in belief.classes]
        pictures = self._small if question.grouped else self._large
        return {
            "id": question.id,
            "why": question.why,
            "choices": choices[: CHOICES[1]],
            "further": further,
            "middle": paths.index(question.paths[0]) if question.grouped and question.paths[0] in paths else None,
            "photos": [{"path": path, "picture": pictures.uri(path)} for path in paths],
            "said": [[who, label] for who, label in self.log.said().get(paths[0], {}).items()],
        }


def _person(who: str) -> str:
    return " ".join(who.split())[:LONGEST_NAME]


def _told(found: Progress, only_ones: int) -> dict[str, Any]:
    """What the page says of it: nothing before a few answers have tested the model, and no advice before a few more."""
    wanted = max(0, LEAST_TESTS - found.tested)
    known: dict[str, Any] = {"tested": found.tested, "wanted": wanted, "only_ones": only_ones, "gain": None, "stop": False}
    if only_ones:
        return known
    if not wanted:
        known |= {"estimate": found.estimate, "low": found.low, "high": found.high}
    if found.tested >= TO_STOP:
        known |= {"gain": found.gain, "stop": found.stop}
    return known
