"""Verdict against measured gain, with descriptions and with class names alone: one JSON line per run, resumable.

    python benchmarks/verdicts.py DATA --sets pets37 cifar10 dtd10 --out benchmarks/results/verdicts.jsonl
    python benchmarks/verdicts.py --table benchmarks/results/verdicts.jsonl

DATA holds one folder per set, as for ``finelens bench``. A method is fitted to the train part without its labels, where signals and verdict are
taken; the truth is its gain over zero-shot with templates on the test part, "better" and "worse" where the 95 % paired bootstrap interval
leaves out 0.
Cases: all images, a long tail, half of the classes, four images a class, 121 and 30 images at random. The table judges the signals of the file anew.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from asked import data_command, set_parser, tabulated

import finelens
from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.features import take
from finelens.bench.rows.health import health_of
from finelens.bench.rows.protocols import Split, make_split, parse_protocol
from finelens.bench.sets.data import read_folder
from finelens.core.console import Console
from finelens.core.schemas import VERDICTS
from finelens.engine.engine import Engine
from finelens.evaluation.metrics import paired_bootstrap
from finelens.evaluation.signals import Signals
from finelens.evaluation.verdict import verdict
from finelens.feature_store.store import feature_rows
from finelens.images.load import BATCH
from finelens.images.randomness import generator, permutation
from finelens.methods.parts.frozen import cosine_logits
from finelens.runs.fit import fit
from finelens.runs.model import copy_into

METHODS = ("consensus", "joint-gmm", "stata", "tip-adapter")
TEXTS = ("descriptions", "templates")
# Name, protocol, images at random of it (0: all), draws.
CASES = (
    ("all images", "inductive", 0, 1),
    ("long tail", "longtail-10", 0, 2),
    ("half of the classes", "partial-half", 0, 2),
    ("four a class", "few-4", 0, 1),
    ("121 images", "inductive", 121, 2),
    ("30 images", "inductive", 30, 2),
)
TRUTHS = ("better", "no difference shown", "worse")
QUIET = Console(enabled=False)


def main() -> None:
    parser = set_parser(__doc__)
    given = parser.parse_args()
    if tabulated(given, tables):
        return
    command = data_command()
    done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    start = Start("embedded")
    for name in given.sets:
        data = read_folder(given.data / name)
        for texts in TEXTS:
            context = Context(data if texts == "descriptions" else replace(data, descriptions=None), start, QUIET)
            for row in rows(context, texts, {key(row) for row in done}):
                with given.out.open("a") as file:
                    file.write(json.dumps({**row, "finelens": finelens.__version__, "command": command}) + "\n")
        print(name, flush=True)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("set", "texts", "case", "draw", "method"))


def rows(context: Context, texts: str, done: set[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """One row a run that is not done yet."""
    for case, protocol, most, draws in CASES:
        for draw in range(draws):
            split = make_split(parse_protocol(protocol), context.train.truth(), context.test.truth(), context.data.class_names, draw, None)
            if most:
                split = replace(split, fit=np.sort(split.fit[permutation(generator(draw, 0, "", "verdicts"), len(split.fit))[:most]]))
            for method in METHODS:
                about = {"set": context.data.name, "texts": texts, "case": case, "draw": draw, "method": method}
                if key(about) not in done:
                    yield about | run(context, split, method, draw)


def run(context: Context, split: Split, method: str, seed: int) -> dict[str, Any]:
    """Signals on the fitted images, and the gain on the test part."""
    backbone = context.start.backbone
    centre = {name: tensor.clone() for name, tensor in backbone.fitted_state().items()}
    engine, config = Engine(backbone, context.start.device, context.start.precision), context.config(method, seed, {})
    store, test = context.train.unlabelled_features(split.fit), take(context.test.features, split.test)
    prepared = context.prepared(config, split.names, engine)
    first = cosine_logits(engine, test.global_, context.heads(split.names).templates).argmax(1)
    try:
        fitted = fit(prepared, store, config, QUIET)
        answers = torch.cat([fitted.model.logits(part)["logits"] for part in feature_rows(test, BATCH)]).argmax(1)
        health = health_of(fitted, store, QUIET)
    finally:
        copy_into(dict(backbone.fitted_state()), centre)
    assert health is not None
    truth = torch.as_tensor(context.test.truth().labels[split.test])
    right, before = (answers == truth).numpy(), (first == truth).numpy()
    low, high = paired_bootstrap(right, before)
    return {
        "accuracy": round(float(right.mean()), 4),
        "zero_shot": round(float(before.mean()), 4),
        "gain_interval": [round(low, 4), round(high, 4)],
        "truth": TRUTHS[0] if low > 0 else TRUTHS[2] if high < 0 else TRUTHS[1],
        **health.to_json(),
    }


def tables(found: list[dict[str, Any]]) -> str:
    """Verdict by truth, by texts and method, and by texts and case; what is shown is how many of the runs had each truth."""
    parts = []
    for column, values in (("method", METHODS), ("case", [case[0] for case in CASES])):
        lines = [f"| texts | {column} | verdict | {' | '.join(TRUTHS)} |", "|---" * 6 + "|"]
        for texts in TEXTS:
            for value in values:
                counts = Counter(
                    (verdict(Signals(**row["signals"])).level, row["truth"]) for row in found if row["texts"] == texts and row[column] == value
                )
                lines += [
                    f"| {texts} | {value} | {level} | {' | '.join(str(counts[level, truth]) for truth in TRUTHS)} |"
                    for level in VERDICTS
                    if any(counts[level, truth] for truth in TRUTHS)
                ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
