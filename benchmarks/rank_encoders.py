"""Ranking of encoders without labels against their true accuracy, on labelled sets; one JSON line a set.

    python benchmarks/rank_encoders.py DATA --sets pets37 cifar10 --out results.jsonl
    python benchmarks/rank_encoders.py --table results.jsonl

DATA holds one folder per set, as for ``finelens bench``. The encoders are readings of the embedded one, from features that are encoded once: both its
halves together and alone, with and without the centre of the photographs, and with class names alone in the place of templates; and copies that were
spoiled on purpose. Kendall's tau is between the rank and the accuracy.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from asked import data_command
from scipy.stats import kendalltau
from torch import Tensor

import finelens
from finelens.backbones.embedded import LOGIT_SCALE
from finelens.bench.rows.context import Context, Start
from finelens.bench.sets.data import read_folder
from finelens.core.console import Console
from finelens.evaluation.encoder_rank import Seen, rank_encoders

IMAGES = 300
SIGNS = ("agreement", "shape")


def encoders(context: Context, rows: np.ndarray) -> dict[str, Seen]:
    """Readings of the embedded encoder and spoiled copies, by name; spoiled ones begin with ``spoiled``."""
    names = context.data.class_names
    backbone: Any = context.start.fresh_engine().backbone
    cls = context.test.features.cls[rows].float()
    texts, bare = context.heads(names).templates.float(), F.normalize(backbone.encode_text(list(names)), dim=1)
    split = backbone.width

    def features(centre: bool) -> Tensor:
        backbone.centre.copy_(cls.mean(0) if centre else torch.zeros_like(backbone.centre))
        return F.normalize(backbone.project(cls), dim=1)

    with torch.no_grad():
        joint, plain = features(True), features(False)
    found = {
        "joint": (joint, texts),
        "joint, no centre": (plain, texts),
        "ridge": (joint[:, :split], texts[:, :split]),
        "ridge, no centre": (plain[:, :split], texts[:, :split]),
        "ConSE": (joint[:, split:], texts[:, split:]),
        "joint, names alone": (joint, bare),
        "ConSE, names alone": (joint[:, split:], bare[:, split:]),
    }
    g = torch.Generator().manual_seed(0)
    for size in (0.5, 1.0, 2.0):
        noise = torch.randn(joint.shape, generator=g)
        found[f"spoiled: noise {size:g}"] = (joint + size * noise / noise.norm(dim=1, keepdim=True), texts)
    third = torch.randperm(len(names), generator=g)[: max(2, len(names) // 3)]
    wrong = texts.clone()
    wrong[third] = texts[third.roll(1)]
    found["spoiled: a third of the texts exchanged"] = (joint, wrong)
    found["spoiled: all texts exchanged"] = (joint, texts[torch.randperm(len(names), generator=g)])
    thin = torch.randn(joint.shape[1], 16, generator=g)
    found["spoiled: 16 directions"] = (joint @ thin, texts @ thin)
    return {name: _seen(name, F.normalize(x, dim=1), F.normalize(t, dim=1)) for name, (x, t) in found.items()}


def _seen(name: str, features: Tensor, texts: Tensor) -> Seen:
    return Seen(name, (LOGIT_SCALE * features @ texts.T).softmax(1), features, texts)


def measure(name: str, data: Path, start: Start) -> dict[str, Any]:
    """One row: a set."""
    context = Context(read_folder(data / name), start, Console())
    truth = torch.as_tensor(context.test.truth().labels)
    rows = np.random.default_rng(0).permutation(len(truth))[:IMAGES]
    every = encoders(context, rows)
    accuracy = {key: float((one.probabilities.argmax(1) == truth[rows]).double().mean()) for key, one in every.items()}
    row: dict[str, Any] = {"set": name, "images": len(rows), "accuracy": accuracy}
    for which, keep in (("with spoiled", lambda key: True), ("without", lambda key: not key.startswith("spoiled"))):
        row[which] = _compared([one for key, one in every.items() if keep(key)], accuracy, truth[rows])
    return row


def _compared(seen: list[Seen], accuracy: dict[str, float], truth: Tensor) -> dict[str, Any]:
    ranked, vote = rank_encoders(seen)
    true = [accuracy[one.name] for one in ranked]
    signs: dict[str, Callable[[Any], float]] = {sign: lambda one, sign=sign: float(getattr(one, sign)) for sign in SIGNS}  # type: ignore[misc]
    return {
        "encoders": len(ranked),
        "tau": {sign: round(float(kendalltau([value(one) for one in ranked], true).statistic), 3) for sign, value in signs.items()},
        "taken": ranked[0].name,
        "taken_accuracy": true[0],
        "best": max(true),
        "worst": min(true),
        "mean": mean(true),
        "joined": float((vote.argmax(1) == truth).double().mean()),
        "ranked": [vars(one) for one in ranked],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of results."""
    head = "| set | encoders | tau: agreement | tau: shape | taken | its accuracy | best | mean | worst | votes joined |"
    lines = [head, "|" + "---|" * 10]
    for which in ("without", "with spoiled"):
        own = [row[which] for row in rows]
        for row, one in zip(rows, own, strict=True):
            taus = " | ".join(f"{one['tau'][sign]:.2f}" for sign in SIGNS)
            numbers = " | ".join(f"{100 * one[key]:.1f}" for key in ("taken_accuracy", "best", "mean", "worst", "joined"))
            lines.append(f"| {row['set']} | {one['encoders']}, {which} | {taus} | {one['taken']} | {numbers} |")
        taus = " | ".join(f"**{mean(one['tau'][sign] for one in own):.2f}**" for sign in SIGNS)
        numbers = " | ".join(f"**{100 * mean(one[key] for one in own):.1f}**" for key in ("taken_accuracy", "best", "mean", "worst", "joined"))
        lines.append(f"| **mean** | {which} | {taus} | | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of a file of results")
    given = parser.parse_args()
    if given.table is None:
        start = Start("embedded")
        for name in given.sets:
            row = {**measure(name, given.data, start), "finelens": finelens.__version__, "command": data_command()}
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(table([json.loads(line) for line in (given.table or given.out).read_text().splitlines()]))


if __name__ == "__main__":
    main()
