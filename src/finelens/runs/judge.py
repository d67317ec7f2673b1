"""The verdict on a finished run, and ``verdict.json``, which says it to programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finelens.core.schemas import SCHEMA_VERSION, VERDICT_FILE, VERDICTS, VERSION
from finelens.errors import UserError
from finelens.evaluation.answered import Answered
from finelens.evaluation.collapse import collapse_warning
from finelens.evaluation.signals import Signals
from finelens.evaluation.verdict import Verdict, nothing_trained, verdict
from finelens.methods.method import ZERO_SHOT
from finelens.methods.registry import find_method
from finelens.runs.config import RunConfig
from finelens.storage.files import json_text, read_json, write_text
from finelens.storage.predictions import PredictionRow

FORMAT = "finelens-verdict"
# What labels said, of all that ``evaluation.json`` holds.
MEASURED = (
    *("n", "accuracy", "accuracy_interval", "zero_shot_accuracy", "description_ensemble_accuracy", "difference_interval"),
    *("answered_left_out", "adapted_to"),
)


def judge(
    config: RunConfig,
    signals: Signals,
    rows: Sequence[PredictionRow],
    classes: Sequence[str],
    *,
    untrained: str | None = None,
    supported: bool = False,
    answered: Answered | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Verdict:
    """Judge a run.

    Args:
        config: What was asked.
        signals: Its label-free numbers.
        rows: Its predictions.
        classes: Class names.
        untrained: Why nothing was trained though the method trains.
        supported: Whether a support set took part.
        answered: What a person's answers said; None without.
        evaluation: What labels said; None without labels.
    """
    answering = config.method if untrained is None else config.entry.without_training(config.method_options)[0]
    if untrained is not None and answering == ZERO_SHOT:
        return nothing_trained(signals, untrained, evaluation)
    trains = find_method(answering).trains
    alarm = collapse_warning(rows, classes, trains=trains)
    labelled = config.hints_file is not None or supported
    alarms = [] if alarm is None else [alarm]
    return verdict(signals, alarms, labelled=labelled, trains=trains, answered=answered, evaluation=evaluation)


def write_verdict(path: Path, found: Verdict, signals: Signals, evaluation: Mapping[str, Any] | None = None) -> None:
    """Write ``verdict.json``, atomically; its fields are documented in docs/report.md.

    Raises:
        UserError: The file cannot be written.
    """
    measured = None if evaluation is None else {name: evaluation[name] for name in MEASURED if name in evaluation}
    document = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "finelens_version": VERSION,
        "verdict": found.level,
        "measured": found.measured,
        "sentence": found.sentence,
        "reasons": [{"code": reason.code, "kind": reason.kind, "text": reason.text} for reason in found.reasons],
        "figures": asdict(signals),
        "evaluation": measured,
    }
    write_text(path, json_text(document) + "\n")


def read_level(run: Path) -> str:
    """The verdict in a run's ``verdict.json``.

    Raises:
        UserError: There is none, or it is none of ``schemas.VERDICTS``.
    """
    path = run / VERDICT_FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist: finelens report {run} writes it for a finished run")
    document = read_json(path)
    level = document.get("verdict") if isinstance(document, Mapping) and document.get("format") == FORMAT else None
    if level not in VERDICTS:
        raise UserError(f"{path}: not the verdict of a finelens run; finelens report {run} writes it again")
    return str(level)


def contradiction(run: Path, evaluation: Mapping[str, Any]) -> str | None:
    """A line where a run was called improved and labels do not confirm it; None elsewhere."""
    if not (run / VERDICT_FILE).is_file() or read_level(run) != VERDICTS[0]:
        return None
    if evaluation["difference_interval"][0] > 0 and evaluation["accuracy"] >= (evaluation.get("description_ensemble_accuracy") or 0):
        return None
    return f"the run was called {VERDICTS[0]}, and these labels do not confirm it; finelens report {run} --labels ... puts them into its report"
