"""Accuracy on new photographs against answers: whom to ask, and what the answers teach; one JSON line per run, resumable.

    python benchmarks/looking.py DATA --sets pets37 cifar10 dtd10 --out benchmarks/results/looking.jsonl
    python benchmarks/looking.py --table benchmarks/results/looking.jsonl

DATA holds one folder per set, as for ``finelens bench``. A draw is nine tenths of ``train/``, at random; C, 2C and 4C photographs of it are answered,
for C classes, by folder name and all at once; accuracy is that on all of ``test/``. Plans pair an order of asking with a method.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hint_value import QUIET, World, accuracy

import finelens
from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.features import take
from finelens.bench.sets.data import read_folder
from finelens.images.randomness import generator, permutation
from finelens.reporting.review.worth import centred_looks
from finelens.solvers.asking import ask

TIMES = (1, 2, 4)
# Order of asking and method of the second round; the last is the flow of before.
PLANS = (("worth", "consensus"), ("random", "consensus"), ("doubt", "consensus"), ("worth", "joint-gmm"), ("doubt", "stata"))
KEY = ("set", "draw", "order", "method", "times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--draws", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="print the table of a file of results")
    given = parser.parse_args()
    if given.table is not None:
        print(table([json.loads(line) for line in given.table.read_text().splitlines()]))
        return
    command = "python benchmarks/looking.py DATA " + " ".join(sys.argv[2:])
    start = Start("embedded")
    for name in given.sets:
        context = Context(read_folder(given.data / name), start, QUIET)
        for draw in given.draws:
            lines = given.out.read_text().splitlines() if given.out.exists() else []
            for row in rows(context, draw, {tuple(json.loads(line)[key] for key in KEY) for line in lines}):
                with given.out.open("a") as file:
                    file.write(json.dumps({**row, "finelens": finelens.__version__, "command": command}) + "\n")
                print(json.dumps(row), flush=True)


def rows(context: Context, draw: int, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """One row a run that is not done yet."""
    classes, images = len(context.data.class_names), len(context.pool("train").truth().labels)
    worlds: dict[str, World] = {}
    free: dict[str, Any] = {}
    for order, method in (*PLANS, ("none", "consensus")):
        for times in TIMES if order != "none" else (0,):
            key = {"set": context.data.name, "draw": draw, "order": order, "method": method, "times": times}
            if tuple(key.values()) in done:
                continue
            if method not in worlds:
                worlds[method] = World(context, "inductive", method, round(0.9 * images), {}, draw)
                free[method] = worlds[method].run(np.array([], dtype=np.int64))
                worlds[method].doubted = worlds[method].review_order(free[method][0])
            world = worlds[method]
            chosen = asked(world, order, draw, times * classes)
            right = (world.run(chosen) if len(chosen) else free[method])[1] == world.test_truth
            named = len(np.unique(world.truth[chosen]))
            yield {**key, "answers": len(chosen), "classes": classes, "named": named, "images": len(world.truth), "accuracy": accuracy(right)}


def asked(world: World, order: str, draw: int, n: int) -> np.ndarray:
    """Positions of the photographs that are answered."""
    if not n:
        return np.array([], dtype=np.int64)
    if order == "random":
        return permutation(generator(draw, 0, "hints", "looking"), len(world.truth))[:n]
    if order == "doubt":
        return world.doubted[:n]
    looks = centred_looks(take(world.pool.features, world.fitted_rows))
    nobody = torch.zeros(0, dtype=torch.int64)
    return ask(looks, torch.ones(len(looks)), nobody, n, classes=len(world.context.data.class_names)).rows.numpy()


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: accuracy with C / 2C / 4C answers, the mean over the draws."""
    sets = list(dict.fromkeys(row["set"] for row in found))
    lines = ["| order, method | " + " | ".join([*sets, "mean"]) + " | draws |", "|---" * (len(sets) + 3) + "|"]
    for order, method in (("none", "consensus"), *PLANS):
        own = [row for row in found if (row["order"], row["method"]) == (order, method)]
        times = sorted({row["times"] for row in own})
        means = [[np.mean([row["accuracy"] for row in own if (row["set"], row["times"]) == (name, t)]) for t in times] for name in sets]
        cells = [" / ".join(f"{value:.1f}" for value in values) for values in (*means, np.mean(means, 0))]
        lines.append(f"| {order}, {method} | " + " | ".join(cells) + f" | {len({row['draw'] for row in own})} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
