"""What answers teach where classes are uneven: accuracy on new photographs with C, 2C and 4C answers, all asked at once in the order ``worth``.

    python benchmarks/uneven_answers.py DATA --sets pets37 cifar10 dtd10 --out benchmarks/results/uneven_answers.jsonl
    python benchmarks/uneven_answers.py --table benchmarks/results/uneven_answers.jsonl

Both parts of a set are thinned out alike: in ``tail`` the classes keep shares from 1 down to a tenth, in ``half`` every second class is absent,
though its name stays in the list. Which classes, and which of their photographs, is drawn anew each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from asked import data_command, set_parser, tabulated
from hint_value import QUIET
from torch import Tensor

import finelens
from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.features import take
from finelens.bench.sets.data import read_folder
from finelens.evaluation.prequential import random_order
from finelens.reporting.review.worth import questions
from finelens.solvers.columns import centred_views
from finelens.solvers.known import Known
from finelens.solvers.learner import Learner
from finelens.solvers.taught import steady, teach

TIMES, KINDS = (1, 2, 4), ("tail", "half")


def main() -> None:
    parser = set_parser(__doc__)
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3])
    given = parser.parse_args()
    if tabulated(given, table):
        return
    command, start = data_command(), Start("embedded")
    with given.out.open("w") as file:
        for name in given.sets:
            context = Context(read_folder(given.data / name), start, QUIET)
            for row in rows(context, given.draws):
                file.write(json.dumps({"set": name, **row, "finelens": finelens.__version__, "command": command}) + "\n")
                file.flush()


def rows(context: Context, draws: Sequence[int]) -> Iterator[dict[str, Any]]:
    prototypes, pool, test = context.heads(context.data.class_names).descriptions, context.pool("train"), context.test
    truth, new_truth = (torch.as_tensor(np.asarray(part.truth().labels)) for part in (pool, test))
    for kind in KINDS:
        for draw in draws:
            random = torch.Generator().manual_seed(draw)
            place = torch.randperm(len(prototypes), generator=random)
            kept = 0.1 ** (place / (len(prototypes) - 1)) if kind == "tail" else (place < (len(prototypes) + 1) // 2).float()
            own, other = ((torch.rand(len(labels), generator=random) < kept[labels]).nonzero()[:, 0] for labels in (truth, new_truth))
            engine = context.start.fresh_engine()
            fitted, new = engine.centre(take(pool.features, own.numpy())), take(test.features, other.numpy())
            seen = engine.backbone.project(new.cls) if engine.backbone.fitted_state() else new.global_
            views, new_views = ([F.normalize(view, dim=1) for view in pair] for pair in ((fitted.global_, fitted.cls), (seen, new.cls)))
            key = {"kind": kind, "draw": draw}
            yield from answered(views, truth[own], new_views, new_truth[other], prototypes, engine.backbone.logit_scale, key)


def answered(
    views: list[Tensor], truth: Tensor, new: list[Tensor], new_truth: Tensor, prototypes: Tensor, scale: float, key: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    learner, widths, classes = Learner(views, prototypes, scale), [view.shape[1] for view in views], len(prototypes)
    assert learner.solver is not None
    log_p = learner.solver.predict_log_proba(new)
    seen = steady(centred_views(torch.cat(new, 1), learner.solver.centre_, widths), learner.looks, widths)
    right = [log_p.argmax(1) == new_truth]
    order, nobody = random_order([str(i) for i in range(len(truth))]), torch.zeros(0, dtype=torch.int64)
    for times in TIMES:
        asked, _ = questions(learner.looks, torch.ones(len(truth)), nobody, order, min(times * classes, len(truth) - 1), classes=classes)
        taught = teach(learner.steady, learner.log_p, Known(asked.rows, truth[asked.rows]))
        right.append(taught.logits(seen, log_p).argmax(1) == new_truth)
    for times, found in zip((0, *TIMES), right, strict=True):
        yield {**key, "times": times, "images": len(truth), "accuracy": round(100 * float(found.double().mean()), 2)}


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: accuracy without answers and with C / 2C / 4C of them, the mean over the draws."""
    sets = list(dict.fromkeys(row["set"] for row in found))
    lines = ["| classes | " + " | ".join([*sets, "mean"]) + " |", "|---" * (len(sets) + 2) + "|"]
    for kind in KINDS:
        own = [
            [[row["accuracy"] for row in found if (row["set"], row["kind"], row["times"]) == (name, kind, t)] for t in (0, *TIMES)] for name in sets
        ]
        means = np.array([[np.mean(values) for values in one] for one in own])
        lines.append(f"| {kind} | " + " | ".join(" / ".join(f"{value:.1f}" for value in one) for one in (*means, means.mean(0))) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
