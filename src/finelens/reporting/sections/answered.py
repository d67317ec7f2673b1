"""What a person answered, and what the answers say of the run."""

from __future__ import annotations

from finelens.core.options import from_mapping
from finelens.evaluation.answered import Answered
from finelens.reporting.record import RunRecord


def build(record: RunRecord) -> Answered | None:
    """The part on answers; None for a run without, or of before they were counted."""
    found = record.event("predictions").get("answered")
    return None if found is None else from_mapping(Answered, found, "answered")
