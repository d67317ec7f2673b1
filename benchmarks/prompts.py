"""How much answers hang on the wording of the prompts: the same photographs, class names and method under several sets of templates.

    python benchmarks/prompts.py DATA --sets pets37 cifar10 dtd10 --out prompts.jsonl

DATA holds data sets as for ``finelens bench``. Each method is fitted to the training part under each set of templates, without the set's
descriptions, and asked about the test part. ``answers_that_change`` is the mean over all pairs of template sets of the share of photographs that get
another class, which needs no labels; the accuracies beside it do.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from asked import data_command

from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.protocols import make_split, parse_protocol
from finelens.bench.rows.runner import answer
from finelens.bench.sets.data import DataSet
from finelens.bench.sets.find import find_data
from finelens.classes.templates import DEFAULT_TEMPLATES
from finelens.core.console import Console

QUIET = Console(enabled=False)
TEMPLATES = {
    "bare": ("{}",),
    "sentence": ("a photo of a {}.",),
    "default": DEFAULT_TEMPLATES,
    "shot": ("a close-up photo of the {}.", "a blurry photo of the {}.", "a dark photo of the {}.", "a small photo of one {}."),
    "art": ("a drawing of a {}.", "a painting of a {}.", "a sculpture of a {}.", "a cartoon of the {}."),
    "plural": ("many {} together.", "a group of {}.", "photos of {}."),
    "question": ("is there a {} in this picture?", "what a {} looks like"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", default=["zero-shot", "consensus"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    start = Start("embedded", "cpu")
    for name in given.sets:
        data = find_data(name, given.data)[1]()
        for row in rows_of(data, start, given.methods):
            with given.out.open("a") as file:
                file.write(json.dumps({"set": name, **row, "command": data_command()}) + "\n")
            print(name, row, flush=True)


def rows_of(data: DataSet, start: Start, methods: list[str]) -> Iterator[dict[str, Any]]:
    found: dict[str, dict[str, np.ndarray]] = {method: {} for method in methods}
    protocol = parse_protocol("inductive")
    for wording, templates in TEMPLATES.items():
        changed = replace(data, templates=templates, descriptions=None)
        context = Context(changed, start, QUIET)
        split = make_split(protocol, context.train.truth(), context.test.truth(), data.class_names, 0, None)
        for method in methods:
            logits = answer(context, context.config(method, 0, {}), protocol, split).logits["logits"]
            found[method][wording] = logits.argmax(1)
    for method, answers in found.items():
        accuracies = {wording: round(float((own == split.truth).mean()), 4) for wording, own in answers.items()}
        pairs = [float((a != b).mean()) for a, b in itertools.combinations(answers.values(), 2)]
        yield {
            "method": method,
            "images": len(split.truth),
            "accuracies": accuracies,
            "lowest": min(accuracies.values()),
            "mean": round(float(np.mean(list(accuracies.values()))), 4),
            "highest": max(accuracies.values()),
            "answers_that_change": round(float(np.mean(pairs)), 4),
        }


if __name__ == "__main__":
    main()
