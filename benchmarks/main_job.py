"""The main job on image folders with train/ and test/: zero-shot, description ensemble and adapted methods, one JSON line per result.

    python benchmarks/main_job.py DATA --sets pets37 cifar10 --methods microclip --profile small --out results.jsonl

DATA holds one folder per set: ``train/`` (used without labels), ``test/<folder>/*``, ``classes.txt``, ``classes.json`` and ``descriptions.json``.
Finished (set, method, profile, seed) are skipped, so the command can be repeated after an interruption. The baseline of a set is the better of
zero-shot and description ensemble with the same texts. Profiles:

    small   at most 300 training images, 5 epochs
    medium  at most 500 training images, the defaults
    full    all images, the defaults
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

import finelens
from finelens import api
from finelens.config import parse_assignments
from finelens.console import Console
from finelens.evaluation.labels import read_labels
from finelens.evaluation.metrics import paired_bootstrap
from finelens.images.discover import discover

PROFILES: dict[str, tuple[int | None, dict[str, Any]]] = {"small": (300, {"training": {"epochs": 5}}), "medium": (500, {}), "full": (None, {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", default=["microclip"])
    parser.add_argument("--profile", choices=PROFILES, default="small")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    for name in given.sets:
        for method in given.methods:
            for seed in given.seeds:
                key = {
                    "set": name,
                    "method": method,
                    "profile": given.profile,
                    "seed": seed,
                    "backbone": given.backbone,
                    "options": given.assignments,
                }
                if any(all(row[k] == v for k, v in key.items()) for row in done):
                    continue
                row = key | run_one(given.data / name, method, seed, given.profile, given.backbone, given.assignments)
                with given.out.open("a") as file:
                    file.write(json.dumps(row | provenance()) + "\n")
                print(describe(row), flush=True)


def run_one(data: Path, method: str, seed: int, profile: str, backbone: str, assignments: list[str]) -> dict[str, Any]:
    limit, options = PROFILES[profile]
    merged = {**options}
    for section, values in parse_assignments(assignments).items():
        merged[section] = {**merged.get(section, {}), **values}
    with tempfile.TemporaryDirectory() as scratch:
        train = subset(data / "train", limit, Path(scratch) / "train")
        start = time.perf_counter()
        api.adapt(
            train,
            data / "classes.txt",
            Path(scratch) / "run",
            descriptions=data / "descriptions.json",
            method=method,
            seed=seed,
            backbone=backbone,
            options=merged,
            console=Console(enabled=False),
        )
        seconds = time.perf_counter() - start
        return score(Path(scratch) / "run", data / "test") | {"n_train": len(discover(train)), "seconds": round(seconds, 1)}


def subset(folder: Path, limit: int | None, target: Path) -> Path:
    """Links to the first ``limit`` files by a hash of their names; labels play no part."""
    files = discover(folder)
    if limit is None or len(files) <= limit:
        return folder
    target.mkdir()
    for i, file in enumerate(sorted(files, key=lambda f: sha256(f.name.encode()).hexdigest())[:limit]):
        (target / f"{i:05d}{file.path.suffix}").symlink_to(file.path)
    return target


def score(run: Path, test: Path) -> dict[str, Any]:
    classifier = api.load_run(run)
    truth = read_labels(test, "folders", classifier.classes)
    found = classifier.predictions(test)
    rows = [(record.index, truth[record.name]) for record in found.records if record.index is not None and record.name in truth]
    order, targets = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    correct = {name: logits.numpy()[order].argmax(1) == targets for name, logits in {**found.logits, **found.zero_shot}.items()}
    baseline = max(("templates", "descriptions"), key=lambda name: correct[name].mean())
    low, high = paired_bootstrap(correct["logits"], correct[baseline])
    return {
        "n_test": len(targets),
        "zero_shot": percent(correct["templates"]),
        "description_ensemble": percent(correct["descriptions"]),
        "accuracy": percent(correct["logits"]),
        "branches": {name: percent(correct[name]) for name in found.logits if name != "logits"},
        "gain": round(percent(correct["logits"]) - percent(correct[baseline]), 2),
        "gain_interval": [round(100 * low, 2), round(100 * high, 2)],
    }


def percent(correct: np.ndarray) -> float:
    return round(100 * float(correct.mean()), 2)


def provenance() -> dict[str, Any]:
    return {
        "command": "python " + " ".join(["benchmarks/main_job.py", "DATA", *sys.argv[2:]]),
        "finelens": finelens.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def describe(row: dict[str, Any]) -> str:
    branches = ", ".join(f"{name} {value:.1f}" for name, value in row["branches"].items())
    return (
        f"{row['set']:11} {row['method']:10} seed {row['seed']}  zero-shot {row['zero_shot']:.1f}  descriptions {row['description_ensemble']:.1f}  "
        f"adapted {row['accuracy']:.1f} ({branches})  gain {row['gain']:+.1f} {row['gain_interval']}  {row['seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
