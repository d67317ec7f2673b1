"""The table of all images, as the page's script reads it: short, for it may have fifty thousand rows."""

from __future__ import annotations

from typing import Any

from finelens.reporting.record import RunRecord


def build(record: RunRecord) -> dict[str, Any]:
    """Class names, statuses, and one list a file: path, class, probability in per mille, margin in per mille, zero-shot class, status.

    Classes and statuses are positions in their lists; -1 where there is none.
    """
    place = {name: i for i, name in enumerate(record.classes)}
    statuses = sorted({row.status for row in record.rows})
    return {
        "classes": list(record.classes),
        "statuses": statuses,
        "rows": [
            [
                row.path,
                -1 if row.label is None else place[row.label],
                round(1000 * (row.probability or 0.0)),
                round(1000 * (row.margin or 0.0)),
                place.get(row.zero_shot_class or "", -1),
                statuses.index(row.status),
            ]
            for row in record.rows
        ],
    }
