"""What microCLIP's cut keeps on the embedded tower: the object or the background, by boxes drawn by hand around the objects of 60 demo photographs.

    python benchmarks/saliency.py DATA --sets pets37 cifar10 dtd10 --out benchmarks/results/saliency.jsonl
    python benchmarks/saliency.py --table benchmarks/results/saliency.jsonl

For each rule: the share of the mask that lies on the object and the share of the object that it covers, both by area on the centre view that the
model sees, beside what a mask drawn at random would have on the object; and per set the accuracy of the fine branch that the mask leads, and of both
branches, before any training (head: mean descriptions, projections: the identity). Photographs whose object fills at least 90 % of the view tell
rules apart no more and are left out. Labels of the sets are read for the accuracy only. ``undetermined`` counts images whose graph determines a cut,
but whose largest positive and negative entries tie: there the rule of before asked the solver's rounding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from asked import data_command, set_parser, tabulated
from torch import Tensor

import finelens
from finelens import demo
from finelens.bench.rows.context import Context, Start
from finelens.bench.sets.data import read_folder
from finelens.core.console import Console
from finelens.engine.engine import Engine
from finelens.images.batches import centre_batches
from finelens.images.store import load_images
from finelens.images.views import centre_view
from finelens.methods.microclip.config import MicroClipConfig
from finelens.methods.microclip.ncut import TIE, Saliency, ncut_saliency
from finelens.methods.microclip.task import MicroClip
from finelens.protocol import ImageTokens

QUIET = Console(enabled=False)
# An object that fills the view is hit by every mask.
FILLS = 0.9

Rule = Callable[[ImageTokens, Saliency, Tensor], Tensor]


def _border(tokens: ImageTokens) -> Tensor:
    """Outermost cells of a square grid, (N,) bool."""
    assert tokens.patches is not None
    side = math.isqrt(tokens.patches.shape[1])
    inner = torch.zeros(side, side, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    return ~inner.flatten()


def _lengths(tokens: ImageTokens) -> Tensor:
    assert tokens.patches is not None
    return tokens.patches.float().norm(dim=-1)  # (B, N)


def _likeness(tokens: ImageTokens) -> Tensor:
    """Cosine of each patch with the mean patch, (B, N)."""
    assert tokens.patches is not None
    return F.cosine_similarity(tokens.patches.float(), tokens.patches.float().mean(1, keepdim=True), dim=-1)


def _above_mean(values: Tensor) -> Tensor:
    return values > values.mean(1, keepdim=True)


def _leaning(cut: Saliency, values: Tensor) -> Tensor:
    """The cut's side on which values (B, N) are larger: by the sign of their covariance with the eigenvector."""
    vector = cut.vector.float()
    sign = (vector * (values - values.mean(1, keepdim=True))).sum(1, keepdim=True).sign()
    return _above_mean(vector * sign) | cut.fallback[:, None]


def _other(cut: Saliency) -> Tensor:
    return ~cut.mask | cut.fallback[:, None]


def _by_size(cut: Saliency, *, larger: bool) -> Tensor:
    keep = (cut.mask.float().mean(1, keepdim=True) > 0.5) == larger
    return torch.where(keep, cut.mask, _other(cut)) | cut.fallback[:, None]


def _best(cut: Saliency, covered: Tensor) -> Tensor:
    """The side with more of itself on the object: what no rule for the sign can beat."""
    own, other = (_on_object(mask, covered) for mask in (cut.mask, _other(cut)))
    return torch.where((own >= other)[:, None], cut.mask, _other(cut))


# The first two are what ``salient_side`` names; the rest were tried. ``covered`` is the share (B, N) of each cell that the object covers.
RULES: dict[str, Rule] = {
    "decided": lambda tokens, cut, covered: cut.mask,
    "mean-like": lambda tokens, cut, covered: ncut_saliency(_patches(tokens), side="mean-like").mask,
    "decided, inverted": lambda tokens, cut, covered: _other(cut),
    "smaller side": lambda tokens, cut, covered: _by_size(cut, larger=False),
    "larger side": lambda tokens, cut, covered: _by_size(cut, larger=True),
    "away from the border": lambda tokens, cut, covered: _leaning(cut, (~_border(tokens)).float().expand(cut.mask.shape)),
    "longer tokens": lambda tokens, cut, covered: _leaning(cut, _lengths(tokens)),
    "released code": lambda tokens, cut, covered: ncut_saliency(_patches(tokens), released_code=True).mask,
    "no cut: length above mean": lambda tokens, cut, covered: _above_mean(_lengths(tokens)),
    "no cut: likeness above mean": lambda tokens, cut, covered: _above_mean(_likeness(tokens)),
    "no cut: all cells but the border": lambda tokens, cut, covered: (~_border(tokens)).expand(cut.mask.shape),
    "no cut: all": lambda tokens, cut, covered: torch.ones_like(cut.mask),
}
BEST = "better side, by the boxes"


def main() -> None:
    parser = set_parser(__doc__)
    given = parser.parse_args()
    if tabulated(given, table):
        return
    if given.out is None or (given.sets and given.data is None):
        parser.error("give DATA --sets ... --out FILE, or --table FILE")
    about = {"finelens": finelens.__version__, "command": data_command(), "backbone": "embedded"}
    start = Start("embedded")
    with given.out.open("w") as file:
        for row in rows(start, given.data, given.sets):
            file.write(json.dumps({**row, **about}) + "\n")
            print(json.dumps(row), flush=True)


def rows(start: Start, data: Path | None, sets: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of the objects, then of the sets."""
    yield from objects(start.engine)
    for name in sets:
        assert data is not None
        yield from accuracies(Context(read_folder(data / name), start, QUIET))


def objects(engine: Engine) -> Iterator[dict[str, Any]]:
    """Overlap of masks and objects, one row a rule."""
    boxes = demo.object_boxes()
    store = load_images([str(demo.photos_dir() / name) for name in boxes]).store
    originals = [store[i] for i in range(len(store))]
    preprocess, grid = engine.backbone.preprocess, engine.backbone.grid
    covered = torch.stack([_covered(image, own, preprocess, grid) for image, own in zip(originals, boxes.values(), strict=True)])  # (B, N)
    told_apart = covered.mean(1) < FILLS
    covered = covered[told_apart]
    views = torch.stack([centre_view(image, preprocess) for image in originals])[told_apart]
    tokens = engine.encode_frozen(views, patches=True)
    cut = ncut_saliency(_patches(tokens))
    for name, rule in {**RULES, BEST: lambda tokens, cut, covered: _best(cut, covered)}.items():
        yield {"of": "objects", "rule": name, **overlap(rule(tokens, cut, covered), covered), "undetermined": undetermined(cut)}


def _covered(image: Tensor, boxes: list[tuple[float, float, float, float]], preprocess: Any, grid: tuple[int, int]) -> Tensor:
    """Share of each cell of the centre view that boxes cover, (N,): the boxes go the way of the pixels."""
    height, width = image.shape[1:]
    inside = torch.zeros(3, height, width, dtype=torch.uint8)
    for left, top, right, bottom in boxes:
        inside[:, round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 255
    return F.adaptive_avg_pool2d(centre_view(inside, preprocess)[:1].float() / 255, grid).flatten()


def _patches(tokens: ImageTokens) -> Tensor:
    assert tokens.patches is not None
    return tokens.patches


def _on_object(mask: Tensor, covered: Tensor) -> Tensor:
    return (mask * covered).sum(1) / mask.sum(1).clamp(min=1)  # (B,)


def overlap(mask: Tensor, covered: Tensor) -> dict[str, float]:
    """Means over photographs.

    Args:
        mask: (B, N) bool.
        covered: Share of each patch on the object, (B, N).

    Returns:
        ``share`` of patches in the mask; ``on_object``, share of the mask on the object; ``chance``, the same of a mask at random; ``lift``, their
        difference, with its standard error; ``covers``, share of the object in the mask; ``iou`` of mask and cover; ``better_than_chance``, share of
        photographs.
    """
    on_object, chance = _on_object(mask, covered), covered.mean(1)
    lift = on_object - chance
    found = {
        "share": mask.float().mean(),
        "on_object": on_object.mean(),
        "chance": chance.mean(),
        "lift": lift.mean(),
        "lift_error": lift.std() / math.sqrt(len(lift)),
        "covers": ((mask * covered).sum(1) / covered.sum(1)).mean(),
        "iou": ((mask * covered).sum(1) / torch.maximum(mask.float(), covered).sum(1)).mean(),
        "better_than_chance": (lift > 0).float().mean(),
    }
    return {"n": len(mask), **{name: round(value.item(), 4) for name, value in found.items()}}


def undetermined(cut: Saliency) -> int:
    """Images with a cut whose largest entries of either sign are equal."""
    high, low = cut.vector.amax(1), -cut.vector.amin(1)
    return int((((high - low).abs() <= TIE * torch.maximum(high, low)) & ~cut.fallback).sum())


def accuracies(context: Context) -> Iterator[dict[str, Any]]:
    """Accuracy of the start model's branches on a set's test part, one row a rule."""
    engine, names = context.start.engine, context.data.class_names
    task = MicroClip(engine, context.heads(names), MicroClipConfig())
    labels, everything = context.test.truth().labels, np.arange(len(context.test.truth().labels))
    answers: dict[str, list[dict[str, Tensor]]] = {name: [] for name in RULES}
    fallbacks = ties = 0
    with torch.no_grad():
        for _, views in centre_batches(context.test.images(everything), engine.backbone.preprocess, 64):
            tokens = engine.encode_frozen(views, patches=True)
            cut = ncut_saliency(_patches(tokens))
            fallbacks, ties = fallbacks + int(cut.fallback.sum()), ties + undetermined(cut)
            for name, rule in RULES.items():
                answers[name].append(task.branch_logits(_led(task, tokens, rule(tokens, cut, torch.empty(0)))))
    for name, parts in answers.items():
        right = {b: float((torch.cat([p[b] for p in parts]).argmax(1).numpy() == labels).mean()) for b in ("global", "fine", "logits")}
        yield {"of": context.data.name, "rule": name, "n": len(labels), **right, "fallbacks": fallbacks, "undetermined": ties}


def _led(task: MicroClip, tokens: ImageTokens, mask: Tensor) -> Any:
    """Features whose fine branch a mask leads."""
    return task.features(tokens, cut=lambda: Saliency(mask, mask.double(), torch.zeros(len(mask), dtype=torch.bool), mask.double().mean(1)))


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: objects, then accuracies in per cent."""
    lines = ["| rule | share of view | on the object | against chance | covers | IoU | better than chance |", "|---|---|---|---|---|---|---|"]
    for row in [row for row in found if row["of"] == "objects"]:
        shares = [f"{100 * row[name]:.0f}" for name in ("share", "on_object", "covers", "iou", "better_than_chance")]
        lift = f"{100 * row['lift']:+.1f} ± {100 * row['lift_error']:.1f}"
        lines.append(f"| {row['rule']} | " + " | ".join([*shares[:2], lift, *shares[2:]]) + " |")
    sets = list(dict.fromkeys(row["of"] for row in found if row["of"] != "objects"))
    lines += ["", "| rule | " + " | ".join(f"{name}: fine, fused" for name in sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for rule in dict.fromkeys(row["rule"] for row in found if row["of"] in sets):
        own = [row for row in found if row["rule"] == rule and row["of"] in sets]
        lines.append(f"| {rule} | " + " | ".join(f"{100 * row['fine']:.1f}, {100 * row['logits']:.1f}" for row in own) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
