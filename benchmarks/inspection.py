"""Few-shot inspection: the similarity vote of the manufacturing case study against solvers that get the same labelled photographs.

    pip download --no-deps conformal-clip-data==0.1.4 && unzip -q conformal_clip_data-0.1.4-py3-none-any.whl -d textiles
    python benchmarks/inspection.py textiles/conformal_clip_data/data/textile_images/simulated --out inspection.jsonl

DATA has a folder a class, here ``nominal``, ``local`` and ``global``: simulated textiles, 250 pixels wide. In each draw, as many photographs of each
class are labelled, 50 more of each class calibrate conformal sets, and all others are asked about. ``similarity vote`` is the study's scheme
(arXiv 2501.12596): the class whose most similar labelled photograph is nearest, no texts; ``nearest mean`` the class mean that is nearest. Solvers
are fitted to the labelled photographs alone, ``+ unlabelled`` to those that are asked about as well, without their labels. Accuracy is the mean over
classes; ``defect`` counts nominal against any defect. The tower is centred by the photographs of the fit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from asked import data_command
from torch import Tensor

from finelens.bench.rows.context import Start
from finelens.classes.class_set import build_class_set
from finelens.core.console import Console
from finelens.evaluation.conformal import calibrate
from finelens.evaluation.metrics import class_mean_accuracy
from finelens.feature_store.encoder import FeatureEncoder
from finelens.images.decode import DecodeLimits
from finelens.images.discover import discover
from finelens.images.load import load
from finelens.protocol import Hints, TargetFeatures
from finelens.solvers import SOLVERS

QUIET = Console(enabled=False)
NAMES = {
    "nominal": "woven textile without a defect",
    "local": "woven textile with a local defect",
    "global": "woven textile with a wrong weave pattern",
}
CALIBRATE, COVERAGE = 50, 0.9
SOLVED = (("gda", False), ("tip-adapter", False), ("tip-adapter-f", False), ("consensus", False), ("consensus", True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--shots", nargs="+", type=int, default=[10, 50])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    start = Start("embedded", "cpu")
    features, labels = encode(given.data, start)
    texts, *_ = build_class_set(
        list(NAMES.values()), None, None, count_tokens=start.backbone.count_tokens, context_length=start.backbone.context_length
    )
    head = start.heads(texts).templates
    for shots in given.shots:
        for draw in range(given.draws):
            for row in rows_of(start, features, labels, head, shots, draw):
                with given.out.open("a") as file:
                    file.write(json.dumps({"shots": shots, "draw": draw, **row, "command": data_command()}) + "\n")
    summarise(given.out)


def encode(data: Path, start: Start) -> tuple[TargetFeatures, np.ndarray]:
    limits = DecodeLimits()
    files = [(image, kind) for kind, name in enumerate(NAMES) for image in discover(data / name)]
    loaded = load([image for image, _ in files], limits, QUIET, None)
    rows = [record.index for record in loaded.records]
    assert None not in rows
    found = FeatureEncoder(start.engine, limits.short_side).centre(loaded.store, QUIET, "encode")
    order = torch.tensor(rows)
    return TargetFeatures(found.global_[order], found.cls[order]), np.array([kind for _, kind in files])


def rows_of(start: Start, all_: TargetFeatures, labels: np.ndarray, head: Tensor, shots: int, draw: int) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(draw)
    order = random.permutation(len(labels))
    own = [order[labels[order] == c] for c in range(len(NAMES))]
    parts = slice(shots), slice(shots, shots + CALIBRATE), slice(shots + CALIBRATE, None)
    labelled, held, asked = (np.concatenate([rows[part] for rows in own]) for part in parts)
    y = torch.as_tensor(labels[labelled])
    for method, unlabelled in (("zero-shot", False), ("similarity vote", False), ("nearest mean", False), *SOLVED):
        fit = np.concatenate([labelled, asked]) if unlabelled else labelled
        # Only consensus looks at both views.
        views = looks(start, all_, fit)[: 2 if method == "consensus" else 1]
        answer = posterior(method, views, fit, labelled, y, head, start.backbone.logit_scale)
        p, truth = answer(asked).numpy(), labels[asked]
        rule = calibrate(answer(held).numpy(), labels[held], COVERAGE)
        sets = rule.contains(p)
        weight = 1 / np.bincount(truth)[truth]
        yield {
            "method": method + (" + unlabelled" if unlabelled else ""),
            "accuracy": round(100 * class_mean_accuracy(truth, p.argmax(1), len(NAMES)), 2),
            "defect": round(100 * class_mean_accuracy(truth > 0, p.argmax(1) > 0, 2), 2),
            "coverage": round(100 * float(np.average(sets[np.arange(len(truth)), truth], weights=weight)), 2),
            "classes_in_a_set": round(float(np.average(sets.sum(1), weights=weight)), 3),
        }


def posterior(
    method: str, views: list[Tensor], fit: np.ndarray, labelled: np.ndarray, y: Tensor, head: Tensor, scale: float
) -> Callable[[np.ndarray], Tensor]:
    """Probabilities (M, C) of photographs by their rows."""

    def together(rows: np.ndarray) -> Any:
        return [view[rows] for view in views] if len(views) > 1 else views[0][rows]

    if method in SOLVERS:
        hints = Hints(torch.arange(len(labelled)), y)
        solver = SOLVERS[method]().fit(together(fit), prototypes=head, logit_scale=scale, hints=hints)
        return lambda rows: solver.predict_proba(together(rows))
    x, keys = views[0], views[0][labelled]
    if method == "zero-shot":
        return lambda rows: (scale * x[rows] @ head.T).softmax(1)
    if method == "nearest mean":
        means = F.normalize(torch.stack([keys[y == c].mean(0) for c in range(len(NAMES))]), dim=1)
        return lambda rows: (x[rows] @ means.T).softmax(1)
    return lambda rows: torch.stack([(x[rows] @ keys[y == c].T).amax(1) for c in range(len(NAMES))], 1).softmax(1)


def looks(start: Start, found: TargetFeatures, fit: np.ndarray) -> list[Tensor]:
    """Both views of all photographs, after the tower is centred by the rows of the fit."""
    backbone = start.backbone
    centre = {name: tensor.clone() for name, tensor in backbone.fitted_state().items()}
    try:
        start.engine.centre(TargetFeatures(found.global_[fit], found.cls[fit]))
        with torch.no_grad():
            asked = F.normalize(backbone.project(found.cls), dim=-1) if centre else found.global_
    finally:
        for name, tensor in backbone.fitted_state().items():
            tensor.copy_(centre[name])
    return [asked, found.cls]


def summarise(path: Path) -> None:
    """Means over draws, and the mean difference to the similarity vote with its 95 % t-interval over draws."""
    from scipy.stats import t

    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for shots in dict.fromkeys(row["shots"] for row in rows):
        base = np.array([row["accuracy"] for row in rows if (row["shots"], row["method"]) == (shots, "similarity vote")])
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if (row["shots"], row["method"]) == (shots, method)]
            mean = {name: float(np.mean([row[name] for row in own])) for name in ("accuracy", "defect", "coverage", "classes_in_a_set")}
            apart = np.array([row["accuracy"] for row in own]) - base
            half = t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / len(apart) ** 0.5
            print(
                f"| {shots} | {method} | {mean['accuracy']:.1f} | {apart.mean():+.1f} ({apart.mean() - half:+.1f} to {apart.mean() + half:+.1f}) | "
                f"{mean['defect']:.1f} | {mean['coverage']:.1f} | {mean['classes_in_a_set']:.2f} |"
            )


if __name__ == "__main__":
    main()
