"""What was asked and answered, in order, in a file that only grows: whoever ends the program at any moment loses nothing.

``hints.csv`` follows from it. One JSON object a line: ``ask`` (questions, as they were chosen), ``act`` (an answer or a skip), ``undo`` (of an act),
``file`` (what somebody wrote into ``hints.csv`` by hand).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finelens.classes.hints import GROUP, How
from finelens.errors import UserError
from finelens.storage.files import append, json_text

PHOTO, FILE = "photo", "file"
# Why a photograph is asked that somebody wanted to see once more.
AGAIN = "you wanted to see it again"


@dataclass(frozen=True)
class Question:
    """One look: a photograph, or a group that is named at once.

    Attributes:
        id: Its number.
        paths: Photographs; the first is the one that was chosen.
        why: Why it is asked.
    """

    id: int
    paths: tuple[str, ...]
    why: str = ""

    @property
    def grouped(self) -> bool:
        """Whether it is a group."""
        return len(self.paths) > 1


@dataclass(frozen=True)
class Act:
    """What a person did with a question.

    Attributes:
        question: Its number.
        label: The class; empty for "none of these", None for a skip.
        who: The person; empty where nobody gave a name.
        odd: Photographs of a group that were taken out: they stay without an answer.
    """

    question: int
    label: str | None
    who: str = ""
    odd: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What is known of a photograph.

    Attributes:
        label: The class; empty for "none of these".
        source: ``photo``, ``group``, or ``file`` for a line of a hints file that does not say it.
        who: The person.
        group: The photograph that the group was around in which this one was named, also where it was named again alone.
    """

    label: str
    source: str = FILE
    who: str = ""
    group: str = ""

    @property
    def how(self) -> How:
        """What a hints file says of it."""
        return How(self.source, self.who, self.group)


def as_told(label: str, how: Iterable[str] | None) -> Answer:
    """An answer that was read from a file, with what the file says of it."""
    source, *rest = how or ("",)
    return Answer(label, source or FILE, *rest)


@dataclass
class AnswerLog:
    """The file, and what follows from it. Safe for several threads; one process at a time.

    Args:
        path: The file; read if it is there, made with the first line.

    Attributes:
        questions: All questions by number, in the order in which they were made.
        acts: What counts, in order; dictionaries are what came from a hints file.
        touched: Photographs that the last change was about: it may have come before ``hints.csv`` was written.

    Raises:
        UserError: The file cannot be read or a whole line of it is damaged.
    """

    path: Path
    questions: dict[int, Question] = field(default_factory=dict, init=False)
    acts: list[Act | dict[str, Answer]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._lock, self._changes = threading.RLock(), 0
        self.touched: frozenset[str] = frozenset()
        for number, line in enumerate(_lines(self.path), start=1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(f"{self.path}, line {number}, is damaged ({error}); delete that line") from error

    def ask(self, questions: Iterable[Question]) -> None:
        """Write down questions before anybody sees them: a restart asks the same."""
        self._write({"event": "ask", "questions": [asdict(question) for question in questions]})

    def act(self, act: Act) -> None:
        """Write down what a person did; on the disk when this returns."""
        self._write({"event": "act", **asdict(act)})

    def undo(self, who: str) -> Act | None:
        """Take back the last act of a person; None where there is none left."""
        with self._lock:
            mine = [act for act in self.acts if isinstance(act, Act) and act.who == who]
            if not mine:
                return None
            self._write({"event": "undo", "who": who})
            return mine[-1]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Changes in the block are taken back where it fails: what was not confirmed to anybody must not come back with the next start."""
        with self._lock:
            size, acts, touched = self.path.stat().st_size if self.path.exists() else 0, list(self.acts), self.touched
            try:
                yield
            except UserError:
                # To make a file shorter takes no room on a full disk.
                with suppress(OSError):
                    os.truncate(self.path, size)
                self.acts, self.touched, self._changes = acts, touched, self._changes + 1
                raise

    def edited(self, rows: Mapping[str, str], told: Mapping[str, How] | None = None) -> None:
        """Write down what somebody changed in ``hints.csv`` by hand, or what was in it before; ``told``: how it says these were given."""
        how = {path: told[path] for path in rows if told and path in told}
        self._write({"event": "file", "rows": dict(rows), **({"told": how} if how else {})})

    @property
    def version(self) -> tuple[int, int]:
        """Changes with everything that was done."""
        with self._lock:
            return self._changes, len(self.questions)

    @property
    def next_id(self) -> int:
        """Number of the next question."""
        with self._lock:
            return max(self.questions, default=0) + 1

    def done_by_persons(self) -> list[Act]:
        """What counts of what persons did, in order."""
        with self._lock:
            return [act for act in self.acts if isinstance(act, Act)]

    def done(self) -> frozenset[int]:
        """Questions that somebody answered or skipped."""
        return frozenset(act.question for act in self.done_by_persons())

    def open(self) -> list[Question]:
        """Questions that nobody did anything with yet, in order."""
        with self._lock:
            done = self.done()
            return [question for number, question in self.questions.items() if number not in done]

    def answers(self) -> dict[str, Answer]:
        """The newest answer about each photograph, in the order in which photographs were first answered."""
        with self._lock:
            found: dict[str, Answer] = {}
            for act in self.acts:
                if isinstance(act, dict):
                    found.update(act)
                elif act.label is not None:
                    question = self.questions[act.question]
                    for path in question.paths:
                        if path not in act.odd:
                            group = question.paths[0] if question.grouped else found[path].group if path in found else ""
                            found[path] = Answer(act.label, GROUP if question.grouped else PHOTO, act.who, group)
            return found

    def said(self) -> dict[str, dict[str, str]]:
        """The newest answer of each person about each photograph."""
        with self._lock:
            found: dict[str, dict[str, str]] = {}
            for act in self.acts:
                if isinstance(act, Act) and act.label is not None:
                    for path in self.questions[act.question].paths:
                        if path not in act.odd:
                            found.setdefault(path, {})[act.who] = act.label
            return found

    def _write(self, event: Mapping[str, Any]) -> None:
        line = json_text({"time": datetime.now(UTC).isoformat(timespec="seconds"), **event}) + "\n"
        with self._lock:
            append(self.path, line.encode("utf-8", "backslashreplace"), durable=True)
            self._take(json.loads(line))

    def _take(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "ask":
            for entry in event["questions"]:
                # Older files say more, of how models were tested then.
                self.questions[int(entry["id"])] = Question(int(entry["id"]), tuple(entry["paths"]), entry["why"])
            return
        if kind == "act":
            changed: Act | dict[str, Answer] = Act(int(event["question"]), event["label"], event["who"], tuple(event["odd"]))
            self.touched = frozenset(self.questions[int(event["question"])].paths)
            self.acts.append(changed)
        elif kind == "undo":
            last = max(i for i, act in enumerate(self.acts) if isinstance(act, Act) and act.who == event["who"])
            self.touched = frozenset(self.questions[self.acts.pop(last).question].paths)  # type: ignore[union-attr]
        elif kind == "file":
            self.touched = frozenset(event["rows"])
            self.acts.append({path: as_told(label, event.get("told", {}).get(path)) for path, label in event["rows"].items()})
        else:
            raise ValueError(f"unknown event {kind!r}")
        self._changes += 1


def _lines(path: Path) -> list[bytes]:
    """Whole lines of the file; a last one that a crash cut short was never confirmed to anybody, and is taken away."""
    if not path.exists():
        return []
    try:
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            with open(path, "r+b") as file:
                file.truncate(end)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    return data[:end].splitlines()
