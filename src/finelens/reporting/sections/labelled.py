"""What labels said: only once somebody gave them to ``evaluate`` or ``report``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finelens.reporting import figures
from finelens.reporting.record import RunRecord

# Classes up to which the whole confusion matrix can be read.
MATRIX = 50
WORST = 20


def build(record: RunRecord) -> dict[str, Any] | None:
    """The part on measured accuracy; None without labels."""
    found = record.evaluation
    if found is None:
        return None
    low, high = found["accuracy_interval"]
    better, worse = found["difference_interval"]
    return {
        "result": found,
        "described": found.get("description_ensemble_accuracy"),
        # None where no person answered, and in what was measured before such photographs were left out.
        "answered_left_out": found.get("answered_left_out") if record.config.hints_file is not None else None,
        # None in what was measured before that was asked.
        "adapted_to": found.get("adapted_to"),
        "interval": (low, high),
        "difference": (better, worse),
        "bar": figures.share_bar(found["accuracy"], found["zero_shot_accuracy"]),
        "per_class": [entry for entry in found["per_class"] if entry["n"]],
        "reliability": _reliability(found),
        "groups": found.get("groups", {}),
        **_confusion(record, found),
    }


def _reliability(found: Mapping[str, Any]) -> Any:
    bins = [(entry["confidence"], entry["accuracy"], entry["n"]) for entry in found.get("reliability", [])]
    if not bins:
        return None
    return figures.reliability(f"Accuracy over confidence in {len(bins)} bins; expected calibration error {found['ece']:.1%}", bins)


def _confusion(record: RunRecord, found: Mapping[str, Any]) -> dict[str, Any]:
    triples = [(int(true), int(guess), int(count)) for true, guess, count in found.get("confusion", [])]
    wrong = sorted(((t, g, n) for t, g, n in triples if t != g), key=lambda item: -item[2])
    names = record.classes
    estimated = {(p.first, p.second) for p in record.measured.confusion[:10]}
    worst = [(names[t], names[g], n, (min(t, g), max(t, g)) in estimated) for t, g, n in wrong[:WORST]]
    if not triples or len(names) > MATRIX:
        return {"worst": worst, "matrix": None}
    counts = [[0] * len(names) for _ in names]
    for true, guess, count in triples:
        counts[true][guess] = count
    return {"worst": worst, "matrix": figures.matrix(f"Confusion matrix of {len(names)} classes, rows true, columns predicted", counts, names)}
