"""What the starting model knows of the classes, and what training made of it: one JSON line for each set, protocol and seed.

    python benchmarks/start_guard.py DATA --sets pets37 cifar10 --out benchmarks/results/start_guard.jsonl
    python benchmarks/start_guard.py --table benchmarks/results/start_guard.jsonl benchmarks/results/bench_training.jsonl

DATA holds one folder per set, as for ``finelens bench``, whose splits these are (profile ``small``). The information is that of
``evaluation/weak_start.py``, on the images that a method would be fitted to; no label is read for it. The tables set it beside what training methods
gained and lost: where ``training.guard`` acts, in rows with ``training.guard=off``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from asked import data_command

import finelens
from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.features import take
from finelens.bench.rows.matrix import PROFILES
from finelens.bench.rows.protocols import PartTruth, SkippedError, make_split, parse_protocol
from finelens.bench.rows.results import Result, read_results
from finelens.bench.sets.data import read_folder
from finelens.core.console import Console
from finelens.evaluation.weak_start import LEAST_DESCRIPTIONS, LEAST_TEMPLATES, start_of
from finelens.methods.parts.frozen import cosine_logits
from finelens.methods.registry import find_method

PROTOCOLS = ("inductive", "transductive", "longtail-10", "transductive+longtail-10", "partial-10", "partial-half")
# The same images whatever the seed.
FIXED = ("inductive", "transductive")
PROFILE = "small"
TEXTS = ("templates", "descriptions")
OFF = ("training.guard=off",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, nargs="+", metavar=("FILE", "RESULTS"))
    given = parser.parse_args()
    if given.table:
        rows = [json.loads(line) for line in given.table[0].read_text().splitlines()]
        print(table_of_starts(rows))
        print(table_of_outcomes(rows, read_results(given.table[1:])))
        return
    if given.data is None or not given.sets or given.out is None:
        parser.error("give DATA --sets ... --out FILE, or --table FILE RESULTS")
    start = Start("embedded")
    for name in given.sets:
        context = Context(read_folder(given.data / name), start, Console(enabled=False))
        for protocol in PROTOCOLS:
            for seed in range(1 if protocol in FIXED else given.seeds):
                try:
                    row = {"set": name, "protocol": protocol, "seed": seed, **measure(context, protocol, seed)}
                except SkippedError:
                    continue
                row |= {"finelens": finelens.__version__, "command": data_command()}
                with given.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        print(name, flush=True)


def measure(context: Context, protocol: str, seed: int) -> dict[str, Any]:
    """Information of both texts on the images that a method would be fitted to."""
    parsed, engine = parse_protocol(protocol), context.start.engine
    train = context.train.truth() if parsed.fit_part == "train" else PartTruth(np.zeros(0, dtype=np.int64), [])
    split = make_split(parsed, train, context.test.truth(), context.data.class_names, seed, PROFILES[PROFILE][0])
    features, heads = take(context.pool(parsed.fit_part).features, split.fit), context.heads(split.names)
    logits = [cosine_logits(engine, features.global_, head).float().cpu() for head in (heads.templates, heads.descriptions)]
    start = start_of(logits[0].softmax(1), logits[1].softmax(1))
    known = {"templates": start.templates, "descriptions": start.descriptions}
    return {"images": len(split.fit), "classes": len(split.names), **known, "weak": start.weak}


def table_of_starts(rows: Sequence[dict[str, Any]]) -> str:
    """Information by set and protocol, in per cent, from the lowest to the highest of the seeds: with templates; with descriptions."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    protocols = [name for name in PROTOCOLS if any(row["protocol"] == name for row in rows)]
    lines = ["| set | " + " | ".join(protocols) + " |", "|---" * (len(protocols) + 1) + "|"]
    for name in sets:
        cells = []
        for protocol in protocols:
            own = [row for row in rows if (row["set"], row["protocol"]) == (name, protocol)]
            cells.append("; ".join(_range([row[text] for row in own]) for text in TEXTS) + _marks(own) if own else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    least = f"{LEAST_TEMPLATES:.1%} with templates or {LEAST_DESCRIPTIONS:.1%} with descriptions"
    return "\n".join([*lines, "", f"°: below {least}, nothing is trained; (°): with some of the seeds.", ""])


def _range(values: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{100 * end:.1f}" for end in (min(values), max(values))))


def _marks(rows: Sequence[dict[str, Any]]) -> str:
    weak = [row["weak"] for row in rows]
    return "°" if all(weak) else " (°)" if any(weak) else ""


def table_of_outcomes(rows: Sequence[dict[str, Any]], results: Sequence[Result]) -> str:
    """What training did to accuracy against zero-shot, apart by whether the guard would act."""
    weak = {(row["set"], row["protocol"], row["seed"]): row["weak"] for row in rows}
    weak |= {(name, protocol, seed): value for (name, protocol, first), value in weak.items() if protocol in FIXED for seed in range(first, 9)}
    found = []
    for row in results:
        key, method = row.key, find_method(row.key.method)
        acts = weak.get((key.data, key.protocol, key.seed))
        usual = OFF if acts else ()
        if row.status == "ok" and key.profile == PROFILE and method.trains and not method.few_shot and acts is not None and key.options == usual:
            found.append((acts, key.method, row))
    lines = [
        "| start | method | rows | mean difference | wholly better | wholly worse | furthest down | furthest up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (acts, method), group in groupby(sorted(found, key=lambda one: one[:2]), key=lambda one: one[:2]):
        lines.append(f"| {_name(acts)} | `{method}` | {_outcome([one[2] for one in group])} |")
    for acts in (False, True):
        own = [row for one, _, row in found if one is acts]
        if own:
            lines.append(f"| {_name(acts)} | all | {_outcome(own)} |")
    return "\n".join([*lines, ""])


def _name(acts: bool) -> str:
    return "held back (`training.guard=off`)" if acts else "let through"


def _outcome(rows: Sequence[Result]) -> str:
    measures = [row.measures for row in rows]
    differences, intervals = [100 * one["difference"] for one in measures], [one["difference_interval"] for one in measures]
    better, worse = sum(low > 0 for low, _ in intervals), sum(high < 0 for _, high in intervals)
    return f"{len(rows)} | {mean(differences):+.1f} | {better} | {worse} | {min(differences):+.1f} | {max(differences):+.1f}"


if __name__ == "__main__":
    main()
