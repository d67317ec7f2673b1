"""What a few answers are worth: 0, 10, 20 and 50 hints in the review's order against as many random ones; one JSON line per run, resumable.

    python benchmarks/hint_value.py DATA --sets pets37 cifar10 --methods stata transclip gda-em --out benchmarks/results/hints.jsonl
    python benchmarks/hint_value.py DATA --sets pets37 cifar10 --methods dpa --draws 1 --limit 300 --set training.epochs=3 --out ...
    python benchmarks/hint_value.py --table benchmarks/results/hints.jsonl

DATA holds one folder per set, as for ``finelens bench``. ``transductive`` fits on ``test/`` and scores images without a hint, ``inductive`` fits on
``train/`` and scores ``test/``. Hints are true classes by folder name, in the order of the review of the same method's run without hints.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asked import data_command, set_parser, tabulated

import finelens
from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.features import take
from finelens.bench.sets.data import read_folder
from finelens.bench.sets.sealed import method_runs
from finelens.core.console import Console
from finelens.evaluation.signals import measure
from finelens.images.randomness import generator, permutation
from finelens.methods.registry import find_method
from finelens.protocol import Hints, ImageRecord
from finelens.reporting.record import RunRecord
from finelens.reporting.review.order import looks
from finelens.runs.config import RunConfig, parse_assignments
from finelens.runs.fit import Fitted, fit
from finelens.runs.predict import predict_store
from finelens.storage.predictions import rows_from_logits

COUNTS = (10, 20, 50)
PARTS = {"transductive": "test", "inductive": "train"}
KEY = ("set", "protocol", "method", "limit", "order", "draw", "hints")
QUIET = Console(enabled=False)


def main() -> None:
    parser = set_parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=["stata"])
    parser.add_argument("--protocols", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--draws", type=int, default=3, help="random sets of hints")
    parser.add_argument("--limit", type=int, help="most images to fit on")
    parser.add_argument("--set", dest="options", action="append", default=[])
    given = parser.parse_args()
    if tabulated(given, table):
        return
    command = data_command()
    start = Start("embedded")
    for name in given.sets:
        context = Context(read_folder(given.data / name), start, QUIET)
        for method in given.methods:
            for protocol in given.protocols:
                done = finished(given.out)
                world = World(context, protocol, method, given.limit, parse_assignments(given.options))
                for row in world.rows(given.draws, done):
                    with given.out.open("a") as file:
                        file.write(json.dumps({**row, "finelens": finelens.__version__, "command": command}) + "\n")
                    print(json.dumps(row), flush=True)


def finished(out: Path) -> set[tuple[Any, ...]]:
    lines = out.read_text().splitlines() if out.exists() else []
    return {tuple(json.loads(line)[key] for key in KEY) for line in lines}


class World:
    """A set, a protocol and a method."""

    def __init__(self, context: Context, protocol: str, method: str, limit: int | None, options: dict[str, dict[str, Any]], draw: int = 0) -> None:
        self.context, self.protocol, self.method, self.limit = context, protocol, find_method(method), limit
        self.config: RunConfig = context.config(method, 0, options)
        self.pool = context.pool(PARTS[protocol])
        labels = self.pool.truth().labels
        order = permutation(generator(draw, 0, "images", "hint value"), len(labels))
        self.fitted_rows = np.sort(order[:limit])
        self.truth, self.test_truth = labels[self.fitted_rows], context.test.truth().labels

    def rows(self, draws: int, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
        """One row a run that is not done yet."""
        plans = [("none", 0, 0), *(("review", 0, n) for n in COUNTS), *(("random", draw, n) for draw in range(draws) for n in COUNTS)]
        row = {"set": self.context.data.name, "protocol": self.protocol, "method": self.method.name, "limit": self.limit}
        if all((*row.values(), *plan) in done for plan in plans):
            return
        free, before = self.run(np.array([], dtype=np.int64))
        review = self.review_order(free)
        for order, draw, n in plans:
            if (*row.values(), order, draw, n) in done:
                continue
            chosen = review if order == "review" else permutation(generator(draw, 0, "hints", "hint value"), len(self.truth))
            after = before if order == "none" else self.run(chosen[:n])[1]
            yield {**row, "order": order, "draw": draw, "hints": n, "images": len(self.truth), **self.score(chosen[:n], before, after)}

    def score(self, hinted: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
        """Accuracies; of new images, or of the folder itself: the images without a hint, and all with the hinted ones put right."""
        if self.protocol == "inductive":
            return {"before": accuracy(before == self.test_truth), "after": accuracy(after == self.test_truth)}
        rest = np.ones(len(self.truth), dtype=bool)
        rest[hinted] = False
        right, now_right = before == self.truth, after == self.truth
        return {
            "wrong_hinted": int((~right[hinted]).sum()),
            "before": accuracy(right[rest]),
            "after": accuracy(now_right[rest]),
            "folder": accuracy(right),
            "folder_corrected": accuracy(right | ~rest),
            "folder_adapted": accuracy(now_right | ~rest),
        }

    def run(self, hinted: np.ndarray) -> tuple[Fitted, np.ndarray]:
        """A run as a user's is made, and its answers: for the images of the fit, or for the test part."""
        hinted = np.sort(hinted)
        hints = Hints(torch.as_tensor(hinted), torch.as_tensor(self.truth[hinted])) if len(hinted) else None
        context, method = self.context, self.method
        engine = context.start.fresh_engine()
        with method_runs():
            source = (self.pool.images if method.needs_pixels else self.pool.unlabelled_features)(self.fitted_rows)
            fitted = fit(context.prepared(self.config, context.data.class_names, engine), source, self.config, QUIET, hints=hints)
            if self.protocol == "transductive":
                logits = predict_store(fitted.model, source, QUIET, features=fitted.features)["logits"]
                self.logits = logits
            else:
                rows = np.arange(len(self.test_truth))
                features = None if method.needs_pixels else take(context.test.features, rows)
                asked = (context.test.images if method.needs_pixels else context.test.unlabelled_features)(rows)
                logits = predict_store(fitted.model, asked, QUIET, features=features)["logits"]
                self.logits = predict_store(fitted.model, source, QUIET, features=fitted.features)["logits"]
        return fitted, logits.argmax(1).numpy()

    def review_order(self, free: Fitted) -> np.ndarray:
        """Positions of the images in the order in which the review of a run without hints shows them."""
        ids = [self.pool.row_digests[row] for row in self.fitted_rows]
        heads = free.model.zero_shot_heads["templates"].cpu()
        measured = measure(self.logits, free.zero_shot_logits, free.described_logits, free.looks, heads, ids, range(len(ids)))
        records = [ImageRecord(str(i), "ok", sample_id=ids[i], index=i) for i in range(len(ids))]
        names = self.context.data.class_names
        rows = rows_from_logits(records, names, self.logits.numpy(), free.zero_shot_logits.argmax(1).numpy())
        record = RunRecord(Path("run"), self.config, tuple(names), tuple(rows), measured, ())
        return np.array([int(look.row.path) for look in looks(record, len(ids))])


def accuracy(right: np.ndarray) -> float:
    return round(100 * float(right.mean()), 2)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; random hints as the mean of their draws."""
    names = ("before", "after", "folder_corrected", "folder_adapted")
    lines = ["| set | method | answers | folder: rest before | rest after | corrected only | adapted too | new images before | after |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        if row["hints"]:
            key = (row["set"], row["method"], row["hints"], row["order"])
            groups.setdefault(key, {}).setdefault(row["protocol"], []).append(row)

    def mean(group: list[dict[str, Any]], name: str) -> str:
        return f"{np.mean([row[name] for row in group]):.1f}" if group else "not run"

    for (data, method, hints, order), parts in groups.items():
        cells = [mean(parts.get("transductive", []), name) for name in names] + [mean(parts.get("inductive", []), name) for name in names[:2]]
        lines.append(f"| {data} | {method} | {hints} {order} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
