"""How the predictions spread over the classes, and how sure they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from finelens.reporting import figures
from finelens.reporting.record import RunRecord

BINS = 20


def build(record: RunRecord) -> dict[str, Any]:
    """The part on class balance and confidence."""
    rows = record.predicted
    total = max(len(rows), 1)
    now, before = Counter(row.label for row in rows), Counter(row.zero_shot_class for row in rows)
    scale = max([*now.values(), *before.values(), 1])
    classes: list[dict[str, Any]] = [
        {
            "name": name,
            "count": now[name],
            "before": before[name],
            "share": now[name] / total,
            "bar": figures.share_bar(now[name] / scale, before[name] / scale),
        }
        for name in record.classes
    ]
    classes.sort(key=lambda entry: (-entry["count"], -entry["before"]))
    return {
        "classes": classes,
        "unused": [name for name in record.classes if not now[name]],
        "unused_before": [name for name in record.classes if not before[name]],
        "confidence": _confidence(record),
    }


def _confidence(record: RunRecord) -> dict[str, Any]:
    rows = record.predicted
    adapted = _shares([row.probability or 0.0 for row in record.predicted])
    first = _shares(record.measured.zero_shot_probability)
    title = "Share of images by probability of the predicted class, in steps of 5 %; bars: this run, line: unadapted model"
    return {
        "chart": figures.histogram(title, adapted, first, ["0", "50%", "100%"]),
        "mean": record.measured.signals.confidence,
        "mean_before": record.measured.signals.confidence_zero_shot,
        "unsure": sum((row.probability or 0.0) < 0.5 for row in rows) / max(len(rows), 1),
    }


def _shares(values: Any) -> list[float]:
    counts, _ = np.histogram(np.asarray(values, dtype=np.float64), bins=BINS, range=(0, 1))
    return (counts / max(counts.sum(), 1)).tolist()
