"""The map of all photographs, contact sheets by class, and what is odd or new."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice, zip_longest
from typing import Any

import torch

from finelens.evaluation.layout import TSNE, Layout
from finelens.reporting.record import RunRecord
from finelens.reporting.sections.images import shown
from finelens.reporting.thumbnails import Thumbnails
from finelens.storage.predictions import PredictionRow

# Small pictures of the map and the contact sheets, and their side; at about 2 kB each.
PICTURES, SIDE = 500, 64
SHOWN = 6
# Below this probability no class fits well.
DOUBTFUL = 0.5


def build(record: RunRecord, layout: Layout | None, thumbnails: Thumbnails) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """What the template shows and what the script reads; nothing without places.

    Args:
        record: The run.
        layout: Places of its photographs.
        thumbnails: Where pictures come from; those of the map are smaller and counted by themselves.
    """
    if layout is None:
        return None, {}
    rows = record.predicted
    small = Thumbnails(thumbnails.photo, PICTURES, side=SIDE, kept=thumbnails.kept)
    pictures = {i: uri for i in _spread(rows) if (uri := small.uri(rows[i].path))}
    doubt = torch.tensor([1 - (row.probability or 0.0) for row in rows])
    odd = layout.likeness.argsort(stable=True)[:SHOWN].tolist()
    content = {
        "how": layout.how,
        "tsne": layout.how == TSNE,
        "pictures": len(pictures),
        "odd": [shown(rows[i], thumbnails) for i in odd],
        "new": [shown(rows[i], thumbnails) for i in _new(layout, doubt)],
    }
    places = {"xy": (1000 * layout.xy).round().int().flatten().tolist(), "pictures": pictures}
    return content, {"map-data": places}


def _new(layout: Layout, doubt: torch.Tensor) -> list[int]:
    """Photographs that no class fits, whose nearest no class fits either: doubt times that of the neighbours, the largest first."""
    if not layout.nearest.shape[1]:
        return []
    score = doubt * doubt[layout.nearest.long()].mean(1)
    found = score.argsort(descending=True, stable=True)[:SHOWN].tolist()
    return [i for i in found if doubt[i] > 1 - DOUBTFUL and score[i] > (1 - DOUBTFUL) ** 2]


def _spread(rows: Sequence[PredictionRow]) -> list[int]:
    """Which photographs get a small picture: of each class in turn its surest, its least sure, and between; what room is left, in their order."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        members[str(row.label)].append(i)
    share = max(2, PICTURES // max(1, len(members)))
    picks = []
    for own in members.values():
        ranked = sorted(own, key=lambda i: -(rows[i].probability or 0.0))
        step = max(1.0, (len(ranked) - 1) / (share - 1))
        places = [round(k * step) for k in range(min(share, len(ranked)))]
        picks.append([ranked[k] for k in (places[0], *places[:0:-1])])
    chosen = [i for turn in zip_longest(*picks) for i in turn if i is not None][:PICTURES]
    return list(islice(dict.fromkeys((*chosen, *range(len(rows)))), PICTURES))
