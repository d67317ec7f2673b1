"""Few-shot GDA where classes are rare: what a class prior is worth, and where it comes from.

    python benchmarks/gda_tail.py DATA --sets pets37 cifar10 dtd10 --out gda_tail.jsonl

DATA holds data sets as for ``finelens bench``. In each draw the class sizes fall tenfold in a random order: of the labelled photographs (4 to one a
class), and of the test part, which the solver is fitted to without its labels. Accuracy and class-mean accuracy on those test photographs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asked import data_command
from new_classes import QUIET, looks
from torch import Tensor

from finelens.bench.rows.context import Context, Start
from finelens.bench.sets.find import find_data
from finelens.protocol import Hints
from finelens.solvers import Gda

RATIO, SHOTS = 10, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    start = Start("embedded", "cpu")
    for name in given.sets:
        context = Context(find_data(name, given.data)[1](), start, QUIET)
        for row in rows_of(context, given.draws):
            with given.out.open("a") as file:
                file.write(json.dumps({"set": name, **row, "command": data_command()}) + "\n")
            print(name, row, flush=True)


def rows_of(context: Context, draws: int) -> Iterator[dict[str, Any]]:
    names = context.data.class_names
    head, scale = context.heads(tuple(names)).descriptions, context.start.engine.backbone.logit_scale
    train, test = (torch.as_tensor(pool.truth().labels) for pool in (context.train, context.test))
    (labelled, _), (asked, _) = looks(context, torch.ones(len(train), dtype=torch.bool))
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        share = RATIO ** (-rng.permutation(len(names)) / max(1, len(names) - 1))
        shots, rows = (pick(labels, share, most, rng) for labels, most in ((train, SHOTS), (test, None)))
        x = torch.cat([labelled[shots], asked[rows]])
        hints = Hints(torch.arange(len(shots)), train[shots])
        for prior in ("uniform", "hints", "estimated"):
            answers = Gda(prior=prior).fit_predict_proba(x, prototypes=head, logit_scale=scale, hints=hints)[len(shots) :].argmax(1)
            yield {"draw": draw, "labelled": len(shots), "asked": len(rows), "prior": prior, **accuracies(answers, test[rows])}


def pick(labels: Tensor, share: np.ndarray, most: int | None, rng: np.random.Generator) -> Tensor:
    """Rows of each class, at random: ``share`` of the most that a class has, or of ``most``, and at least one where there is any."""
    order = torch.as_tensor(rng.permutation(len(labels)))
    largest = most or int(torch.bincount(labels).max())
    return torch.cat([order[labels[order] == c][: max(1, round(largest * float(share[c])))] for c in range(len(share))])


def accuracies(answers: Tensor, truth: Tensor) -> dict[str, float]:
    right = (answers == truth).double()
    means = [float(right[truth == c].mean()) for c in truth.unique()]
    return {"accuracy": round(100 * float(right.mean()), 1), "class_mean": round(100 * float(np.mean(means)), 1)}


if __name__ == "__main__":
    main()
