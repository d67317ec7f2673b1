"""Speed of our ViT image tower, with random weights: share of the matrix-multiply rate, and training of the norms against open_clip's own tower.

    OMP_NUM_THREADS=2 python benchmarks/vit_speed.py --out benchmarks/results/vit_speed.jsonl

ViT-B/32 at 224 px. One JSON line per measurement; times are of a whole batch, in seconds: best and median of the repeats by the clock, and by the
time that all threads worked (``cpu_...``), which a busy machine changes less. The sides of a comparison run in turn.

``encode``  the tower without gradient; ``share`` is its counted FLOPs per second over those of a 1024 x 1024 matrix product timed in between.
``train``   forward and backward to all LayerNorm pairs. Both towers hold the same weights, take the same pixels and run under the same autocast;
            ``gradient_error`` compares their gradients with ours in float32, by norm.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from measuring import CPU, PRECISIONS, VIT_B_32, engine_of, in_turn, matrix_product, ratios, smooth_pictures, vit_b_32, write
from torch import Tensor, nn

from finelens.engine.flops import tower_flops

CHUNKS = (8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--only", choices=("encode", "train"))
    given = parser.parse_args()
    images = smooth_pictures(given.batch)
    for precision in given.precisions:
        if given.only != "train":
            for row in encode(images, precision, given.repeats):
                write(given.out, row)
        if given.only != "encode":
            write(given.out, train(images, precision, given.repeats))


def encode(images: Tensor, precision: str, repeats: int) -> list[dict[str, Any]]:
    """One row per chunk size."""
    engine = engine_of(vit_b_32(), precision)
    flops = tower_flops(engine).forward * len(images)
    product, operations = matrix_product(engine.precision.dtype)

    def encode_in(chunk: int) -> None:
        engine.micro.size = chunk
        engine.encode_frozen(images)

    sides = {"product": product, **{str(chunk): (lambda chunk=chunk: encode_in(chunk)) for chunk in CHUNKS}}
    times = in_turn(sides, repeats)
    peak, rows = times.pop("product"), []
    for chunk, spent in times.items():
        rows.append(
            {
                "what": "encode",
                "precision": precision,
                "batch": len(images),
                "chunk": int(chunk),
                "seconds": spent.row(),
                "gflops": round(flops / min(spent.wall) / 1e9, 1),
                "product_gflops": round(operations / min(peak.wall) / 1e9, 1),
                "share": {name: round(flops / operations * value, 3) for name, value in ratios(peak, spent, digits=6).items()},
            }
        )
    return rows


def train(images: Tensor, precision: str, repeats: int) -> dict[str, Any]:
    """Ours against open_clip's."""
    engine = engine_of(vit_b_32(), precision)
    theirs = open_clip_tower(engine.backbone.visual.state_dict())
    ours = list(engine.backbone.tunable("norm").values())
    norms = [p for m in theirs.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()]
    assert sum(p.numel() for p in ours) == sum(p.numel() for p in norms)
    for parameter in (*ours, *norms):
        parameter.requires_grad_(True)

    direction = torch.randn(VIT_B_32.output_dim, generator=torch.Generator().manual_seed(1))

    def run_ours() -> None:
        clear(ours)
        (engine.encode(images).global_ @ direction).sum().backward()

    def run_theirs() -> None:
        clear(norms)
        pixels = engine.backbone.normalise(images)
        with engine.precision.autocast(CPU):
            features = theirs(pixels)
        (F.normalize(features.float(), dim=-1) @ direction).sum().backward()

    times = in_turn({"ours": run_ours, "open_clip": run_theirs}, repeats)
    found = [torch.cat([p.grad.flatten() for p in side]) for side in (ours, norms)]
    exact = engine_of(engine.backbone, "float32")
    clear(ours)
    (exact.encode(images).global_ @ direction).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in ours])
    errors = [float(f"{(gradient - expected).norm() / expected.norm():.2g}") for gradient in found]
    return {
        "what": "train",
        "precision": precision,
        "batch": len(images),
        "ours": times["ours"].row(),
        "open_clip": times["open_clip"].row(),
        "ratio": ratios(times["open_clip"], times["ours"]),
        "gradient_error": {"ours": errors[0], "open_clip": errors[1]},
        "open_clip_version": open_clip.__version__,
    }


def open_clip_tower(state: dict[str, Tensor]) -> nn.Module:
    """open_clip's own tower with the same weights, frozen but for what the caller trains."""
    config = VIT_B_32
    tower = open_clip.transformer.VisionTransformer(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        output_dim=config.output_dim,
        act_layer=open_clip.transformer.QuickGELU,
    )
    tower.load_state_dict(state)
    return tower.eval().requires_grad_(False)


def clear(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


if __name__ == "__main__":
    main()
