"""What changed between the unadapted model and this run."""

from __future__ import annotations

from collections import Counter
from typing import Any

from finelens.reporting.record import RunRecord
from finelens.reporting.sections.images import shown_all
from finelens.reporting.thumbnails import Thumbnails

FLOWS = 200
EXAMPLES = 12


def build(record: RunRecord, thumbnails: Thumbnails) -> dict[str, Any]:
    """Flows between classes, most frequent first, and the boldest changes: those where both answers were most probable."""
    pairs = zip(record.predicted, record.measured.zero_shot_probability, strict=True)
    changed = [(row, first) for row, first in pairs if row.zero_shot_class not in (None, row.label)]
    flows = Counter((row.zero_shot_class, row.label) for row, _ in changed)
    # What a person said is no answer of the model.
    bold = sorted(((row, first) for row, first in changed if not row.answered), key=lambda item: -(item[0].probability or 0.0) * item[1])
    shown = [row.probability or 0.0 for row, _ in bold[:EXAMPLES]]
    return {
        "lowest": min(shown, default=0.0),
        "highest": max(shown, default=0.0),
        "count": len(changed),
        "total": len(record.predicted),
        "flows": flows.most_common(FLOWS),
        "flows_more": max(0, len(flows) - FLOWS),
        "images": shown_all([row for row, _ in bold[:EXAMPLES]], thumbnails),
    }
