"""Calibration error before and after the label-free temperature, and coverage of conformal sets; one JSON line per set and method.

    python benchmarks/calibration.py DATA --sets pets37 dtd10 --methods zero-shot stata --out results.jsonl
    python benchmarks/calibration.py DATA --sets cifar10 --methods stata --coverage 0.9 --labels 50 --splits 200 --out results.jsonl

DATA holds one folder per set, as for ``finelens bench``. Methods are fitted on ``test/`` without its labels, which are read afterwards. With
``--coverage``, so many labelled photographs are drawn again and again, and the sets of all others are checked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from asked import data_command

import finelens
from finelens.classes.labels import read_labels
from finelens.core.console import Console
from finelens.evaluation.conformal import calibrate
from finelens.evaluation.metrics import accuracy, ece, nll
from finelens.evaluation.signals import nearest_images
from finelens.runs.fit import fit, run_temperature
from finelens.runs.inputs import read_inputs
from finelens.runs.predict import predict_store
from finelens.runs.resolve import make_config
from finelens.storage.predictions import softmax


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", default=["zero-shot", "cupl", "stata", "gda-em"])
    parser.add_argument("--coverage", type=float)
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for name in given.sets:
        for method in given.methods:
            truth, logits, temperature = answers(given.data / name, method)
            row: dict[str, Any] = {"set": name, "method": method, "images": len(truth), "temperature": round(temperature, 3)}
            if given.coverage is None:
                row |= errors(truth, logits, temperature)
            else:
                row |= conformal(truth, softmax(logits / temperature), given.coverage, given.labels, given.splits)
            row |= {"finelens": finelens.__version__, "command": data_command()}
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({key: value for key, value in row.items() if key != "command"}), flush=True)


def answers(data: Path, method: str) -> tuple[np.ndarray, np.ndarray, float]:
    """True classes (N,), logits (N, C) and temperature."""
    quiet = Console(enabled=False)
    files = {"classes_file": str(data / "classes.txt"), "descriptions_file": str(data / "descriptions.json")}
    config = make_config("adapt", str(data / "test"), method, {}, **files)
    inputs = read_inputs(config, quiet)
    store, names = inputs.loaded.store, inputs.prepared.classes.names
    fitted = fit(inputs.prepared, store, config, quiet)
    logits = predict_store(fitted.model, store, quiet, features=fitted.features)["logits"]
    temperature = run_temperature(fitted, logits, nearest_images(fitted.looks, len(names)))
    labels = read_labels(data / "test", "folders", names)
    truth = np.empty(len(logits), dtype=np.int64)
    for record in inputs.loaded.records:
        if record.index is not None:
            truth[record.index] = labels[record.name]
    return truth, logits.numpy(), temperature


def errors(truth: np.ndarray, logits: np.ndarray, temperature: float) -> dict[str, float]:
    before, after = softmax(logits), softmax(logits / temperature)
    found = {"accuracy": accuracy(truth, before.argmax(1)), "confidence": before.max(1).mean(), "confidence_after": after.max(1).mean()}
    found |= {"ece": ece(truth, before), "ece_after": ece(truth, after), "nll": nll(truth, before), "nll_after": nll(truth, after)}
    return {name: round(float(value), 4) for name, value in found.items()}


def conformal(truth: np.ndarray, probabilities: np.ndarray, coverage: float, labels: int, splits: int) -> dict[str, Any]:
    rng, covered, sizes, empty = np.random.default_rng(0), [], [], []
    for _ in range(splits):
        order = rng.permutation(len(truth))
        seen, rest = order[:labels], order[labels:]
        inside = calibrate(probabilities[seen], truth[seen], coverage).contains(probabilities[rest])
        covered.append(inside[np.arange(len(rest)), truth[rest]].mean())
        sizes.append(inside.sum(1).mean())
        empty.append((inside.sum(1) == 0).mean())
    low, high = np.quantile(covered, [0.05, 0.95])
    found = {
        "measured": np.mean(covered),
        "measured_5_percent": low,
        "measured_95_percent": high,
        "set_size": np.mean(sizes),
        "empty": np.mean(empty),
    }
    about = {"asked": coverage, "labels": labels, "splits": splits}
    return about | {name: round(float(value), 4) for name, value in found.items()}


if __name__ == "__main__":
    main()
