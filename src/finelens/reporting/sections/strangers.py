"""Photographs that probably belong to none of the classes."""

from __future__ import annotations

from typing import Any

from finelens.core.schemas import PROBABLY_NONE
from finelens.evaluation.none_of_these import MANY
from finelens.reporting.record import RunRecord
from finelens.reporting.sections.images import shown_all
from finelens.reporting.thumbnails import Thumbnails

EXAMPLES = 12


def build(record: RunRecord, thumbnails: Thumbnails) -> dict[str, Any] | None:
    """Those of largest doubt; None where there is no such photograph, or a run of before did not ask."""
    found = [row for row in record.predicted if not row.answered and (row.none_of_these or 0.0) > PROBABLY_NONE]
    if not found:
        return None
    found.sort(key=lambda row: -(row.none_of_these or 0.0))
    total = len(record.predicted)
    return {"count": len(found), "total": total, "many": len(found) >= MANY * total, "images": shown_all(found[:EXAMPLES], thumbnails)}
