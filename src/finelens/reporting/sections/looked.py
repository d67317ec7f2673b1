"""Where the method looked: its maps and crops, drawn over a few photographs."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from finelens.images.resize import resize
from finelens.images.views import centre_view, crop_regions, crop_views
from finelens.protocol import Task
from finelens.reporting.record import RunRecord
from finelens.reporting.thumbnails import Photo, Thumbnails, picture_uri, square
from finelens.runs.model import Model
from finelens.storage.predictions import PredictionRow

SHOWN = 6
SIDE = 176
CROPS = 5
# What is not attended to keeps this share of its brightness.
DIM = 0.25


def build(record: RunRecord, thumbnails: Thumbnails, model: Model | None) -> list[dict[str, Any]]:
    """One entry an image: the least certain, half of them changed by the method; none without a model, or for a method without maps and crops."""
    if model is None or not _tells(model.task):
        return []
    entries = []
    for row in _chosen(record):
        photo = thumbnails.photo(row.path)
        figures = [] if photo is None else _figures(record, model, row, photo)
        if figures:
            whole = ("photograph", picture_uri(_pillow(square(_seen(model, photo), SIDE))) if photo else "", f"{row.path}, centre view")
            entries.append({"row": row, "figures": [whole, *figures]})
    return entries


def _tells(task: Task) -> bool:
    """Whether the method has maps or weighs crops: photographs of another need not be decoded."""
    kind = type(task)
    return kind.attention_maps is not Task.attention_maps or kind.crop_weights is not Task.crop_weights


def _chosen(record: RunRecord) -> list[PredictionRow]:
    by_margin = sorted(record.predicted, key=lambda row: row.margin or 0.0)
    changed = [row for row in by_margin if row.zero_shot_class not in (None, row.label)][: SHOWN // 2]
    return (changed + [row for row in by_margin if row not in changed])[:SHOWN]


def _seen(model: Model, photo: Photo) -> Tensor:
    return centre_view(photo.pixels, model.engine.backbone.preprocess)


def _figures(record: RunRecord, model: Model, row: PredictionRow, photo: Photo) -> list[tuple[str, str, str]]:
    """Heading, picture and alternative text of each map, and of the crops."""
    view = _seen(model, photo)
    rows, columns = model.engine.backbone.grid
    found = []
    for what, values in model.task.attention_maps(view[None]).items():
        if values.shape[1] != rows * columns:
            continue
        grid = values[0].float().cpu().view(1, rows, columns)
        share = f"{(values[0] > 0.5).float().mean().item():.0%}"
        picture = dimmed(view, grid, smooth=bool(((values != 0) & (values != 1)).any()))
        found.append((what, picture_uri(_pillow(square(picture, SIDE))), f"{row.path}: {what}, {share} of the image is above half"))
    return found + _crops(record, model, row, photo, view)


def dimmed(view: Tensor, grid: Tensor, *, smooth: bool) -> Tensor:
    """A view (3, S, S) uint8 darkened where a map (1, h, w) in [0, 1] is low."""
    weight = resize(grid, list(view.shape[1:]), "bilinear" if smooth else "nearest", antialias=False).clamp(0, 1)  # (1, S, S)
    return (view * (DIM + (1 - DIM) * weight)).to(torch.uint8)


def _crops(record: RunRecord, model: Model, row: PredictionRow, photo: Photo, view: Tensor) -> list[tuple[str, str, str]]:
    """The crops of the last epoch that weighed most in the pseudo-label, as frames in the photograph."""
    views, config = record.config.views, record.config
    count = model.task.views.crops
    if not count:
        return []
    key = (config.seed, config.training.epochs - 1, photo.sample_id, count, views.crop_low, views.crop_high)
    crops = crop_views(photo.pixels, model.engine.backbone.preprocess, *key)
    weights = model.task.crop_weights(view[None], crops[None])
    if weights is None:
        return []
    height, width = photo.pixels.shape[1:]
    regions = crop_regions(height, width, *key)
    best = weights[0].topk(min(CROPS, count)).indices.tolist()
    return [
        ("crops that decided", picture_uri(framed(photo.pixels, [regions[i] for i in best])), f"{row.path}: the {len(best)} crops of most weight")
    ]


def framed(pixels: Tensor, regions: list[tuple[int, int, int]]) -> Image.Image:
    """A photograph (3, H, W) with square frames (top, left, side), the first thickest, reduced to the height of the other figures."""
    height, width = pixels.shape[1:]
    scale = SIDE / height
    image = _pillow(pixels).resize((max(1, math.ceil(width * scale)), SIDE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for rank, (top, left, side) in reversed(list(enumerate(regions))):
        box = [int(edge * scale) for edge in (left, top, left + side - 1, top + side - 1)]
        # A dark line below, so that frames show on white.
        draw.rectangle(box, outline=(0, 0, 0), width=5 if rank == 0 else 3)
        draw.rectangle(
            [box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1], outline=(255, 214, 10) if rank == 0 else (255, 255, 255), width=3 if rank == 0 else 1
        )
    return image


def _pillow(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
