"""Class names that come after the fit: solvers fitted to the photographs and names of half of the classes answer for all of them.

    python benchmarks/new_classes.py DATA --sets pets37 cifar10 dtd10 --out new_classes.jsonl

DATA holds data sets as for ``finelens bench``. Of each set half of the classes, drawn by a seed, are known: a solver is fitted to their training
photographs and names (``gda`` also to four labelled ones a class), takes the other names afterwards (``Solver.with_classes``), and is asked about
all of the test part. Accuracy on test photographs of known classes, of new ones, their harmonic mean, and on all. Beside it the description
ensemble on the same centred features with all names, and the same solver fitted to all training photographs and names. The tower is centred by the
photographs of the fit. ``gaussian`` is ``Gda(base_to_new="gaussian")``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from asked import data_command
from torch import Tensor

from finelens.bench.rows.context import Context, Start
from finelens.bench.sets.find import find_data
from finelens.core.console import Console
from finelens.protocol import Hints, TargetFeatures
from finelens.solvers import SOLVERS, Gda

QUIET = Console(enabled=False)
SHOTS = 4
SEVERAL = ("consensus", "joint-gmm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", choices=SOLVERS, default=["gda", "gda-em", "stata", "tip-adapter", "consensus"])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    start = Start("embedded", "cpu")
    for name in given.sets:
        context = Context(find_data(name, given.data)[1](), start, QUIET)
        for row in rows_of(context, given.methods, given.draws):
            with given.out.open("a") as file:
                file.write(json.dumps({"set": name, **row, "command": data_command()}) + "\n")
            print(name, row, flush=True)


def rows_of(context: Context, methods: list[str], draws: int) -> Iterator[dict[str, Any]]:
    names = context.data.class_names
    head = context.heads(tuple(names)).descriptions
    scale = context.start.engine.backbone.logit_scale
    train, test = (torch.as_tensor(pool.truth().labels) for pool in (context.train, context.test))
    for draw in range(draws):
        known = np.sort(np.random.default_rng(draw).permutation(len(names))[: (len(names) + 1) // 2])
        kept = [known.tolist().index(c) if c in known else -1 for c in range(len(names))]
        own = torch.isin(train, torch.as_tensor(known))
        for part, prototypes, labels in (("known", head[known], torch.as_tensor(kept)[train][own]), ("all", head, train)):
            fit, asked = looks(context, own if part == "known" else torch.ones_like(own))
            if part == "known":
                yield score("descriptions", "text", draw, asked[0] @ head.T, test, known)
            for method in methods:
                solver = SOLVERS[method]()
                hints = shots(labels, len(prototypes), draw) if method == "gda" else None
                solver.fit(fit if method in SEVERAL else fit[0], prototypes=prototypes, logit_scale=scale, hints=hints)
                views = asked if method in SEVERAL else asked[0]
                if part == "all":
                    yield score(method, "fitted to all", draw, solver.predict_log_proba(views), test, known)
                    continue
                other = solver.with_classes(kept, prototypes=head, logit_scale=scale)
                yield score(method, "text", draw, other.predict_log_proba(views), test, known)
                if method == "gda":
                    gaussian = Gda(base_to_new="gaussian").fit(fit[0], prototypes=prototypes, logit_scale=scale, hints=hints)
                    other = gaussian.with_classes(kept, prototypes=head, logit_scale=scale)
                    yield score(method, "gaussian", draw, other.predict_log_proba(views), test, known)


def shots(labels: Tensor, classes: int, draw: int) -> Hints:
    order = torch.as_tensor(np.random.default_rng(100 + draw).permutation(len(labels)))
    chosen = torch.cat([order[labels[order] == c][:SHOTS] for c in range(classes)]).sort().values
    return Hints(chosen, labels[chosen])


def looks(context: Context, rows: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Both views of the training photographs ``rows`` and of the test part, after the tower is centred by the former."""
    backbone = context.start.engine.backbone
    centre = {name: tensor.clone() for name, tensor in backbone.fitted_state().items()}
    first, second = context.train.features, context.test.features
    try:
        fit = context.start.engine.centre(TargetFeatures(first.global_[rows], first.cls[rows]))
        with torch.no_grad():
            asked = F.normalize(backbone.project(second.cls), dim=-1) if centre else second.global_
    finally:
        for name, tensor in backbone.fitted_state().items():
            tensor.copy_(centre[name])
    return [fit.global_, fit.cls], [asked, second.cls]


def score(method: str, way: str, draw: int, answers: Tensor, test: Tensor, known: np.ndarray) -> dict[str, Any]:
    right = answers.argmax(1) == test
    is_known = torch.isin(test, torch.as_tensor(known))
    a, b = (float(right[part].double().mean()) for part in (is_known, ~is_known))
    return {
        "method": method,
        "new_classes": way,
        "draw": draw,
        "known": round(100 * a, 1),
        "new": round(100 * b, 1),
        "harmonic": round(200 * a * b / max(a + b, 1e-9), 1),
        "all": round(100 * float(right.double().mean()), 1),
    }


if __name__ == "__main__":
    main()
