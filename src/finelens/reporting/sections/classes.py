"""Each class in pictures: its most typical images, the least certain, and those that look wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from finelens.evaluation.none_of_these import probably_none
from finelens.reporting.record import RunRecord
from finelens.reporting.sections.images import ShownImage, shown, shown_all
from finelens.reporting.thumbnails import Thumbnails
from finelens.storage.predictions import PredictionRow

SHOWN = 3
# Standard deviations below the class's mean typicality that make an image suspicious, and the size from which a class has such a mean.
FAR, SMALLEST = 1.5, 5
# Zero-shot probability from which a different zero-shot class is a strong disagreement.
STRONG = 0.5


def build(record: RunRecord, thumbnails: Thumbnails) -> dict[str, Any]:
    """One entry a class that has images, those with the smallest mean margin first; pictures as far as the page's limit goes."""
    members: dict[str, list[int]] = defaultdict(list)
    rows = record.predicted
    for i, row in enumerate(rows):
        members[str(row.label)].append(i)
    before = Counter(row.zero_shot_class for row in rows)
    order = sorted(members, key=lambda name: float(np.mean([rows[i].margin or 0.0 for i in members[name]])))
    entries = []
    for name in order:
        if thumbnails.left < 3 * SHOWN:
            break
        entries.append({"name": name, "before": before[name], **_entry(record, rows, members[name], thumbnails)})
    return {"entries": entries, "without": len(order) - len(entries), "any_picture": any(_has_picture(entry) for entry in entries)}


def _has_picture(entry: dict[str, Any]) -> bool:
    return any(image.uri for kind in ("representative", "uncertain") for image in entry[kind])


def _entry(record: RunRecord, rows: Sequence[PredictionRow], members: list[int], thumbnails: Thumbnails) -> dict[str, Any]:
    typicality = np.array([np.nan if (t := record.measured.typicality[i]) is None else t for i in members], dtype=np.float64)
    known = np.nan_to_num(typicality, nan=-1.0)
    # What probably belongs to no class stands for none, though near it there may be more of its kind.
    strange = probably_none([rows[i].none_of_these or 0.0 for i in members])
    order = np.argsort(-known, kind="stable")
    representative = [members[k] for k in order if not strange[k]][:SHOWN]
    uncertain = [i for i in sorted(members, key=lambda i: rows[i].margin or 0.0) if i not in representative][:SHOWN]
    return {
        "count": len(members),
        "strange": int(strange.sum()),
        "probability": float(np.mean([rows[i].probability or 0.0 for i in members])),
        "margin": float(np.mean([rows[i].margin or 0.0 for i in members])),
        "representative": shown_all([rows[i] for i in representative], thumbnails),
        "uncertain": shown_all([rows[i] for i in uncertain], thumbnails),
        "suspicious": _suspicious(record, rows, members, typicality, thumbnails),
    }


def _suspicious(
    record: RunRecord, rows: Sequence[PredictionRow], members: list[int], typicality: np.ndarray, thumbnails: Thumbnails
) -> list[ShownImage]:
    """Images far from the others of their class, or on which both models are sure of different classes; the worst first."""
    found: list[tuple[float, int, str]] = []
    spread = float(np.nanstd(typicality)) if len(members) >= SMALLEST else 0.0
    mean = float(np.nanmean(typicality)) if spread else 0.0
    for i, value in zip(members, typicality, strict=True):
        distance = (mean - value) / spread if spread else 0.0
        first = record.measured.zero_shot_probability[i]
        if rows[i].zero_shot_class not in (None, rows[i].label) and first >= STRONG:
            found.append((FAR + 2 * first, i, f"the unadapted model gave another class {first:.0%}"))
        elif distance >= FAR:
            found.append((distance, i, "unlike the others of its class"))
    found.sort(key=lambda item: -item[0])
    return [shown(rows[i], thumbnails, note) for _, i, note in found[:SHOWN]]
