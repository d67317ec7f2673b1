"""The page of ``finelens explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from finelens.core.schemas import VERSION
from finelens.images.decode import DecodeLimits
from finelens.reporting import figures
from finelens.reporting.explain import Explanation, Side
from finelens.reporting.page import render
from finelens.reporting.sections.looked import dimmed
from finelens.reporting.thumbnails import Photos, Thumbnails, from_run, picture_uri, whole
from finelens.runs.folder import RunFolder

SIDE = 288


def explained_html(found: Explanation, run: Path, photos: Photos) -> str:
    """The page.

    Args:
        found: What is explained.
        run: The run folder.
        photos: Where the run's photographs come from.
    """
    thumbnails = Thumbnails(photos)
    seen = [("what the model saw", _uri(found.view), f"{found.image.name}, centre view")]
    for what, grid in found.maps.items():
        smooth = bool(((grid != 0) & (grid != 1)).any())
        seen.append((what, _uri(dimmed(found.view, grid[None], smooth=smooth)), f"{found.image.name}: {what}"))
    content = {
        "title": f"{found.image.name}: {found.sides[0].name}",
        "found": found,
        "run": run.absolute().name,
        "seen": seen,
        "whole": _uri(whole(found.pixels, SIDE)),
        "sides": [_side(side, found, thumbnails) for side in found.sides],
        "version": VERSION,
    }
    return render("explained.html.j2", content)


def photographs(folder: RunFolder) -> Photos:
    """The run's photographs, read again."""
    return from_run(folder.path, folder.config.photos, DecodeLimits(short_side=SIDE))


def _uri(pixels: Tensor) -> str:
    return picture_uri(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()))


def _side(side: Side, found: Explanation, thumbnails: Thumbnails) -> dict[str, Any]:
    cosines = [cosine for one in found.sides for _, cosine in one.sentences] or [0.0]
    low, high = min(cosines), max(cosines)
    # Cosines of texts and photographs differ little: the bars show where between the lowest and the highest of the page one lies.
    bars = [(sentence, f"{cosine:+.3f}", figures.share_bar((cosine - low) / max(high - low, 1e-9))) for sentence, cosine in side.sentences]
    pictures = [(path, f"{cosine:.3f}", thumbnails.uri(path)) for path, cosine in side.nearest or ()]
    return {"name": side.name, "probability": side.probability, "bars": bars, "pictures": pictures, "without_nearest": side.without_nearest}
