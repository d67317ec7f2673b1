"""Everything a report is made from, read back from the files of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finelens.core.options import from_mapping
from finelens.core.schemas import MODEL_CONFIG_FILE
from finelens.errors import UserError
from finelens.evaluation.answered import Answered
from finelens.evaluation.signals import Measured, read_measured
from finelens.evaluation.trust import Estimates, estimates
from finelens.evaluation.verdict import Verdict
from finelens.runs.config import RunConfig
from finelens.runs.folder import RunFolder
from finelens.runs.judge import judge
from finelens.storage.files import read_json
from finelens.storage.predictions import PredictionRow, read_predictions


@dataclass(frozen=True)
class RunRecord:
    """A finished run as its files tell it.

    Attributes:
        path: The run folder.
        config: What was asked.
        classes: Class names.
        rows: One line per file.
        measured: Label-free measures.
        events: What happened, in order.
        evaluation: What labels said; None without labels.
        temperature: What the model's logits are divided by; 1 in a run without calibration.
        of_rows: Rows of ``predictions.csv`` where those here are a part of them, evenly spread; None where they are all.
    """

    path: Path
    config: RunConfig
    classes: tuple[str, ...]
    rows: tuple[PredictionRow, ...]
    measured: Measured
    events: tuple[Mapping[str, Any], ...]
    evaluation: Mapping[str, Any] | None = None
    temperature: float = 1.0
    of_rows: int | None = None

    @property
    def predicted(self) -> list[PredictionRow]:
        """Rows with a prediction, in their order; ``measured`` has one entry for each."""
        return [row for row in self.rows if row.label is not None]

    @property
    def read(self) -> list[PredictionRow]:
        """Rows of images that could be read: with a prediction, or with a person's answer that they are of no class."""
        return [row for row in self.rows if row.label is not None or row.answered]

    @property
    def files(self) -> int:
        """Files of the run, those included that this is not about."""
        return len(self.rows) if self.of_rows is None else self.of_rows

    @property
    def readable(self) -> int:
        """Those that could be read and have a prediction."""
        return len(self.predicted) if self.of_rows is None else int(self.event("images")["counts"]["ok"])

    @property
    def verdict(self) -> Verdict:
        """Whether to trust the run."""
        supported, signals = bool(self.event("support")), self.measured.signals
        return judge(
            self.config,
            signals,
            self.rows,
            self.classes,
            untrained=self.untrained,
            supported=supported,
            answered=self.answered,
            evaluation=self.evaluation,
        )

    @property
    def answered(self) -> Answered | None:
        """What a person's answers say; None for a run without, or of before they were counted."""
        found = self.event("predictions").get("answered")
        return None if found is None else from_mapping(Answered, found, "answered")

    @property
    def estimates(self) -> Estimates | None:
        """How many answers are right, said without labels; None where all answers are a person's, or there is one class alone to answer."""
        rows = [row for row in self.predicted if not row.answered and row.probability is not None]
        if not rows or len(self.classes) == 1:
            return None
        answers, first = np.array([row.label for row in rows]), np.array([row.zero_shot_class for row in rows])
        return estimates(np.array([row.probability for row in rows], dtype=np.float64), answers, [first], answered=self.answered)

    @property
    def untrained(self) -> str | None:
        """Why nothing was trained though the method trains; None where it was."""
        reason = self.event("guard").get("reason")
        return None if reason is None else str(reason)

    @property
    def title(self) -> str:
        """The method that answers, and the one that was asked for if it is another."""
        return self.answering if self.untrained is None else f"{self.answering} ({self.config.method} was kept from training)"

    @property
    def answering(self) -> str:
        """The method that answers."""
        if self.untrained is None:
            return self.config.method
        return self.config.entry.without_training(self.config.method_options)[0]

    @property
    def epochs(self) -> list[Mapping[str, Any]]:
        """Epoch events."""
        return [event for event in self.events if event["event"] == "epoch"]

    @property
    def calibration(self) -> str:
        """Where the probabilities come from; half a sentence."""
        if not self.config.calibration:
            return "not calibrated"
        return f"calibrated without labels, temperature {self.temperature:.3g}"

    def event(self, name: str) -> Mapping[str, Any]:
        """The last event of that name, empty if there is none."""
        return next((event for event in reversed(self.events) if event["event"] == name), {})


def read_run(folder: RunFolder) -> RunRecord:
    """Read a finished run.

    Raises:
        UserError: Not finished, damaged, or its files do not belong together.
    """
    if not folder.predictions_path.is_file():
        raise UserError(f"{folder.path} is not finished: finelens resume {folder.path} goes on with it")
    rows = tuple(read_predictions(folder.measured_path))
    measured = read_measured(folder.signals_path)
    model = read_json(folder.model_dir / MODEL_CONFIG_FILE)
    if not isinstance(model, Mapping) or not isinstance(names := model.get("class_names"), list):
        raise UserError(f"{folder.model_dir / MODEL_CONFIG_FILE}: not the description of a finelens model; run it again")
    found = sum(row.label is not None for row in rows)
    if len(measured.ids) != found:
        raise UserError(f"{folder.signals_path} is about {len(measured.ids)} images and {folder.measured_path} about {found}; run it again")
    evaluation = read_json(folder.evaluation_path) if folder.evaluation_path.is_file() else None
    if evaluation is not None and not isinstance(evaluation, Mapping):
        raise UserError(f"{folder.evaluation_path}: not the result of finelens evaluate; delete it")
    temperature = model.get("temperature", 1.0)
    if type(temperature) not in (int, float):
        raise UserError(f"{folder.model_dir / MODEL_CONFIG_FILE}: temperature {temperature!r} is not a number; run it again")
    events = tuple(folder.events())
    of_rows = next((event["files"] for event in events if event["event"] == "images"), None) if folder.part_path.is_file() else None
    return RunRecord(folder.path, folder.config, tuple(map(str, names)), rows, measured, events, evaluation, temperature, of_rows)
