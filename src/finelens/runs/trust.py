"""What a finished run says without labels of the accuracy on other photographs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from finelens.core.columns import Column
from finelens.core.console import Console
from finelens.core.options import from_mapping
from finelens.evaluation.answered import Answered
from finelens.evaluation.signals import read_measured
from finelens.evaluation.trust import Estimates, estimates
from finelens.evaluation.weak_start import HARDLY
from finelens.runs.folder import RunFolder
from finelens.runs.predict import Predictions
from finelens.storage.predictions import read_predictions, rounded

# Photographs from which a share is worth a line.
FEWEST = 20


def estimates_of_run(folder: RunFolder, confidence: np.ndarray, answers: np.ndarray, unadapted: Iterable[np.ndarray]) -> Estimates:
    """Estimates for some photographs; of the run's own, its files are enough.

    Args:
        folder: The run.
        confidence: Calibrated probability of the answer for each photograph, (N,), N at least 1.
        answers: Classes, (N,).
        unadapted: Classes of the unadapted model, (N,), by each text head.

    Raises:
        UserError: Files of the run are damaged.
    """
    rows = read_predictions(folder.measured_path)
    fit = np.array([row.probability for row in rows if row.probability is not None and not row.answered], dtype=np.float64)
    # As the rows have them: solvers give many photographs the same probability, which is the level then.
    return estimates(np.array(list(map(rounded, confidence.tolist()))), answers, unadapted, fit, answered_of(folder))


def hardly_knows(folder: RunFolder) -> bool:
    """Whether a run started from a model that hardly knew its classes; False for runs of before, which do not say."""
    return folder.signals_path.is_file() and read_measured(folder.signals_path).signals.weak_start


def answered_of(folder: RunFolder) -> Answered | None:
    """What a person's answers said of a run; None for a run without."""
    found = next((event["answered"] for event in folder.events() if event["event"] == "predictions" and "answered" in event), None)
    return None if found is None else from_mapping(Answered, found, "answered")


@dataclass
class Seen:
    """What estimates need of photographs that are answered group by group: two numbers each, and a class by text head."""

    confidence: Column = field(default_factory=Column)
    answers: Column = field(default_factory=Column)
    unadapted: dict[str, Column] = field(default_factory=dict)
    classes: int = 0

    def add(self, part: Predictions, probabilities: np.ndarray) -> None:
        """Take the answers of a group, with its calibrated probabilities (N, C)."""
        if not part.logits:
            return
        self.classes = probabilities.shape[1]
        self.confidence.add(probabilities.max(axis=1))
        self.answers.add(probabilities.argmax(axis=1))
        for name, logits in part.zero_shot.items():
            self.unadapted.setdefault(name, Column()).add(logits.argmax(1))

    def say(self, folder: RunFolder, console: Console, *, strangers: float | None, hardly: bool) -> None:
        """Say how many are probably right, in one line; nothing of a few photographs, nor of one class, of which every probability is 1.

        Args:
            folder: The run.
            console: What to say.
            strangers: Share that probably belongs to none of the classes.
            hardly: What :func:`hardly_knows` says of it.
        """
        if len(self.confidence) < FEWEST or self.classes == 1:
            return
        # Classes are numbered, and numbers of a column have a decimal point.
        answers, *unadapted = (own.numbers.astype(np.int64) for own in (self.answers, *self.unadapted.values()))
        found = estimates_of_run(folder, self.confidence.numbers, answers, unadapted)
        if found.answers is None and hardly:
            console.say(f"how many of these are right nobody can say without labels, since {HARDLY}")
            return
        console.say(f"without labels: {found.line(strangers)} (docs/robustness.md says how far off such numbers are)")
        if found.others:
            console.detail(f"by other estimates: {', '.join(found.others)}")
