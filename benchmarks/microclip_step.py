"""One microCLIP step against a plain transcription of the released order of operations (``released_order.py``): results, FLOPs and time.

    OMP_NUM_THREADS=2 python benchmarks/microclip_step.py --out benchmarks/results/microclip_step.jsonl

``vit-b-32``: random weights, 224 px. ``embedded``: its own weights, against the forward of timm. One JSON line each:

``equal``    loss and gradients of both sides in float32, the cut solved in float64 on both (in float32, as released, its sign and with it the mask
             depend on the solver); the norm of the difference as a share of the norm, of all gradients together and of the worst tensor. Asserted.
             With the counted operations of a step, and their ratio.
``time``     a step in seconds, sides in turn: plain in float32, ours in float32, ours in bfloat16; and the ratios to plain.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import engine_of, in_turn, ratios, smooth_pictures, vit_b_32, write
from released_order import PlainStep, PlainViT
from torch import Tensor, nn

from finelens.backbones.registry import load_backbone
from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.engine.flops import count
from finelens.methods.microclip.config import MicroClipConfig
from finelens.methods.microclip.task import MicroClip
from finelens.protocol import Backbone, Batch

CLASSES = 37
# Of the norms, in float32, over a hundred layers there and back.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--towers", nargs="+", choices=("vit-b-32", "embedded"), default=["vit-b-32", "embedded"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=("equal", "time"), default=["equal", "time"])
    given = parser.parse_args()
    for tower in given.towers:
        backbone = vit_b_32() if tower == "vit-b-32" else load_backbone("embedded")
        batch = views(given.batch, given.crops)
        about = {"tower": tower, "batch": given.batch, "crops": given.crops}
        if "equal" in given.only:
            row = equal(backbone, batch)
            write(given.out, {"what": "equal", **about, **row})
            assert row["loss_difference"] < LOSS_TOLERANCE
            assert row["gradient_difference"] < GRADIENT_TOLERANCE
        if "time" in given.only:
            write(given.out, {"what": "time", **about, **time(backbone, batch, given.repeats)})


def views(count: int, crops: int) -> Batch:
    """Pictures in place of views."""
    pixels = smooth_pictures(count * (2 + crops)).unflatten(0, (count, 2 + crops))
    return Batch(torch.arange(count), weak=pixels[:, 0], strong=pixels[:, 1], crops=pixels[:, 2:])


def our_step(engine: Engine) -> tuple[MicroClip, dict[str, nn.Parameter]]:
    """The task with the released rules, and what it trains."""
    heads = [F.normalize(torch.randn(CLASSES, engine.backbone.dim, generator=torch.Generator().manual_seed(i)), dim=-1) for i in range(3)]
    task = MicroClip(engine, ClassHeads(*heads), MicroClipConfig(released_code=True))
    trained = {name: p for group in task.parameter_groups() for name, p in group["params"]}
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return task, trained


def plain_step(backbone: Backbone, task: MicroClip) -> tuple[PlainStep, dict[str, nn.Parameter]]:
    """The same step as transcribed, on copies of the same weights, and what it trains under our names."""
    if backbone.name == "embedded":
        tower, encode, prefix = _plain_embedded(backbone)
    else:
        tower = PlainViT(backbone.visual.config).eval()
        tower.load_state_dict(backbone.visual.state_dict())
        encode, prefix = tower, "visual."
    tower.requires_grad_(False)
    copies = {prefix + name: p for name, p in tower.named_parameters()}
    assert task.soap is not None
    head, query, key, value = (nn.Parameter(p.detach().clone()) for p in (task.head, task.soap.query, task.soap.key, task.soap.value))
    trained = {name: copies[name].requires_grad_(True) for name in task.tuned}
    trained |= {"head": head, "soap.query": query, "soap.key": key, "soap.value": value}
    return PlainStep(encode, backbone.project, head, task.frozen_head, query, key, value, backbone.logit_scale), trained


def _plain_embedded(backbone: Any) -> tuple[nn.Module, Callable[[Tensor], tuple[Tensor, Tensor]], str]:
    from copy import deepcopy

    tower = deepcopy(backbone.tower)

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        cells = tower.forward_features(images)
        return backbone.project(cells.mean((2, 3))), cells.flatten(2).transpose(1, 2)

    return tower, encode, "tower."


def sides(backbone: Backbone, batch: Batch, precision: str = "float32") -> tuple[Any, ...]:
    """Ours and plain as functions that do one forward and backward, with their parameters."""
    task, ours = our_step(engine_of(backbone, precision))
    plain, theirs = plain_step(backbone, task)

    def run_ours() -> Tensor:
        _clear(ours)
        loss = task.step(batch, 0, 0).loss
        loss.backward()
        return loss.detach()

    def run_plain() -> Tensor:
        _clear(theirs)
        assert batch.crops is not None
        loss = plain.loss(*(backbone.normalise(view) for view in (batch.weak, batch.strong, batch.crops)))
        loss.backward()
        return loss.detach()

    return run_ours, run_plain, ours, theirs, plain


def equal(backbone: Backbone, batch: Batch) -> dict[str, Any]:
    run_ours, run_plain, ours, theirs, plain = sides(backbone, batch)
    with torch.no_grad():
        patches = plain.encode(backbone.normalise(batch.weak))[1]
        released = plain.cut(patches)
        plain.eigen_dtype = torch.float64
        same = (released == plain.cut(patches)).all(1).double().mean().item()
        density = (patches @ patches.transpose(1, 2) > 0.2).double().mean().item()
    losses: list[Tensor] = []
    operations = [count(lambda run=run: losses.append(run())) / len(batch.index) for run in (run_ours, run_plain)]
    first, second = losses
    assert ours.keys() == theirs.keys()
    apart = {name: _relative(ours[name].grad, theirs[name].grad) for name in ours}
    whole = _relative(*(torch.cat([p.grad.flatten() for p in side.values()]) for side in (ours, theirs)))
    worst = max(apart, key=lambda name: apart[name])
    return {
        "loss": round(second.item(), 6),
        "loss_difference": float(f"{abs(first - second) / second:.2g}"),
        "gradient_difference": float(f"{whole:.2g}"),
        "worst_tensor": [worst, float(f"{apart[worst]:.2g}")],
        "edge_density": round(density, 3),
        "masks_same_in_float32_and_float64": round(same, 3),
        "gflops_per_image": {"ours": round(operations[0] / 1e9, 2), "plain": round(operations[1] / 1e9, 2)},
        "flops_ratio": round(operations[1] / operations[0], 3),
    }


def time(backbone: Backbone, batch: Batch, repeats: int) -> dict[str, Any]:
    run_ours, run_plain, *_ = sides(backbone, batch)
    run_half, *_ = sides(backbone, batch, "bfloat16")
    times = in_turn({"plain": run_plain, "float32": run_ours, "bfloat16": run_half}, repeats)
    row: dict[str, Any] = {name: spent.row() for name, spent in times.items()}
    for precision in ("float32", "bfloat16"):
        row[f"ratio_{precision}"] = ratios(times["plain"], times[precision])
    return row


def _relative(a: Tensor | None, b: Tensor | None) -> float:
    assert a is not None
    assert b is not None
    return ((a - b).norm() / b.norm()).item()


def _clear(parameters: dict[str, nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.grad = None


if __name__ == "__main__":
    main()
