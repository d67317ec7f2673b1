"""Classes that the model probably mixes up, with images that lie between them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from finelens.reporting.record import RunRecord
from finelens.reporting.sections.images import shown_all
from finelens.reporting.thumbnails import Thumbnails
from finelens.storage.predictions import PredictionRow

PAIRS = 10
EXAMPLES = 4


def build(record: RunRecord, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """The likeliest pairs that are the two best classes of some image, each with the number of those and the closest calls among them."""
    between = _between(record)
    pairs = [(record.classes[pair.first], record.classes[pair.second]) for pair in record.measured.confusion]
    found = [(names, images) for names in pairs if (images := between.get(frozenset(names)))]
    return [{"names": names, "count": len(images), "images": shown_all(images[:EXAMPLES], thumbnails)} for names, images in found[:PAIRS]]


def _between(record: RunRecord) -> dict[frozenset[str], list[PredictionRow]]:
    """Images by their two best classes, the smallest margin first."""
    result: dict[frozenset[str], list[PredictionRow]] = defaultdict(list)
    for row in sorted(record.predicted, key=lambda row: row.margin or 0.0):
        if len(row.top5) > 1:
            result[frozenset(name for name, _ in row.top5[:2])].append(row)
    return result
