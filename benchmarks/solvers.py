"""Solvers on cached features: accuracy on image folders. One JSON line per result; time and memory are in solver_speed.py.

    python benchmarks/solvers.py DATA --sets pets37 cifar10 --out results.jsonl

DATA holds one folder per set: ``train/`` (used without labels), ``test/<folder>/*``, ``classes.txt`` and ``descriptions.json``. Settings:

* ``inductive``: fit on train, predict test;
* ``transductive``: fit on test and predict the same images;
* ``few:K``: transductive on the test images of K classes drawn at random, all class names given;
* ``shots:K``: inductive, and the classes of K train images of each class, drawn at random, are given as hints;
* ``tail``: transductive on test images whose class sizes fall tenfold from the largest to the smallest, in random order.

The last three take ``--draws`` draws, whose images are pooled; draws share images, so these intervals are somewhat too narrow. Labels make the
settings, the hints of ``shots`` and the scores, nothing else. Features are kept in the cache folder (``FINELENS_CACHE``) under the hash of weights,
preprocessing and image bytes: images are encoded once. A tower with a centre is centred by the images of the fit, and ``centred`` is the description
ensemble after that: what of a gain is the centre's. Prototypes are descriptions. The joint mixture's second view is the tower's pooled token. The
few-shot method takes part in ``shots`` alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import finelens
from finelens.classes.labels import read_labels
from finelens.classes.names import read_class_file
from finelens.core.console import Console
from finelens.evaluation.metrics import bootstrap_interval, paired_bootstrap
from finelens.images.batches import centre_batches
from finelens.images.discover import discover
from finelens.images.load import decode_limits, load
from finelens.protocol import Hints, TargetFeatures
from finelens.runs.prepare import Prepared, prepare
from finelens.runs.resolve import make_config
from finelens.solvers import SOLVERS
from finelens.storage.cache import cached_tensors

SETTINGS = ("inductive", "transductive", "few:5", "few:10", "few:25", "tail", "shots:4")
QUIET = Console(enabled=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--settings", nargs="+", default=["inductive", "transductive"], help=f"of {', '.join(SETTINGS)}; any number")
    parser.add_argument("--methods", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for name in given.sets:
        data = read_set(given.data / name, given.backbone)
        for setting in given.settings:
            for row in score(data, setting, given.methods, given.draws):
                write(given.out, {"set": name, "backbone": given.backbone} | row)


def write(out: Path, row: dict[str, Any]) -> None:
    about = {
        "command": "python " + " ".join(["benchmarks/solvers.py", *(arg if i else "DATA" for i, arg in enumerate(sys.argv[1:]))]),
        "finelens": finelens.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    with out.open("a") as file:
        file.write(json.dumps(row | about) + "\n")
    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


@dataclass(frozen=True)
class Split:
    """Features of the unadapted model in store order, and classes (-1: unknown)."""

    features: TargetFeatures
    labels: Tensor


@dataclass(frozen=True)
class DataSet:
    prepared: Prepared
    train: Split
    test: Split

    def fitted_on(self, fit: TargetFeatures, *others: TargetFeatures) -> list[Tensor]:
        """Global features after the backbone is centred by ``fit``: those of ``fit``, then those of the others."""
        engine = self.prepared.engine
        first = engine.centre(fit).global_
        if not engine.backbone.fitted_state():
            return [first, *(other.global_ for other in others)]
        with torch.no_grad():
            return [first, *(F.normalize(engine.backbone.project(other.cls), dim=-1) for other in others)]


def read_set(folder: Path, backbone: str) -> DataSet:
    config = make_config("adapt", "(benchmark)", "zero-shot", {"training": {"precision": "float32"}}, backbone=backbone, seed=0, device="cpu")
    names = read_class_file(folder / "classes.txt")
    prepared = prepare(config, names, folder / "descriptions.json", QUIET)
    return DataSet(prepared, *(read_split(prepared, config, folder / split, names) for split in ("train", "test")))


def read_split(prepared: Prepared, config: Any, folder: Path, names: list[str]) -> Split:
    files, backbone = discover(folder), prepared.engine.backbone
    weights = hashlib.sha256()
    for name, tensor in sorted(backbone.image_state().items()):
        weights.update(name.encode() + tensor.contiguous().numpy().tobytes())
    images = [hashlib.sha256(file.path.read_bytes()).hexdigest() for file in files]

    def encode() -> dict[str, Tensor]:
        loaded = load(files, decode_limits(config.views, backbone.preprocess), QUIET)
        features = prepared.engine.features(views for _, views in centre_batches(loaded.store, backbone.preprocess, 64))
        rows = torch.tensor([-1 if record.index is None else record.index for record in loaded.records])
        return {"global": features.global_, "cls": features.cls, "rows": rows}

    stored = cached_tensors(["benchmark features", weights.hexdigest(), repr(backbone.preprocess), *images], encode)
    truth = read_labels(folder, "folders", names)
    labels = torch.full((len(stored["cls"]),), -1)
    for file, row in zip(files, stored["rows"].tolist(), strict=True):
        if row >= 0:
            labels[row] = truth.get(file.name, -1)
    return Split(TargetFeatures(stored["global"], stored["cls"]), labels)


def score(data: DataSet, setting: str, methods: list[str], draws: int) -> list[dict[str, Any]]:
    """One row per method: accuracy with its interval, and the gain over the better of zero-shot and description ensemble."""
    heads, correct, seconds = data.prepared.heads, {}, {}
    if setting.startswith("few:") and int(setting.removeprefix("few:")) >= len(heads.descriptions):
        return []
    prototypes, scale = heads.descriptions, data.prepared.engine.backbone.logit_scale
    from_train = setting == "inductive" or setting.startswith("shots:")
    for seed, rows in enumerate(drawn_rows(data.test.labels, len(prototypes), setting, draws)):
        test, labels = take(data.test.features, rows), data.test.labels[rows]
        fit = data.train.features if from_train else test
        hints = drawn_shots(data.train.labels, len(prototypes), int(setting.removeprefix("shots:")), seed) if setting.startswith("shots:") else None
        x, new = data.fitted_on(fit, test)
        scores = {name: test.global_ @ head.T for name, head in {"zero-shot": heads.templates, "descriptions": prototypes}.items()}
        scores["centred"] = new @ prototypes.T
        for method in methods:
            if method == "gda" and hints is None:
                continue
            start, solver = time.perf_counter(), SOLVERS[method]()
            seen, asked = ([x, fit.cls], [new, test.cls]) if method == "joint-gmm" else (x, new)
            if from_train:
                scores[method] = solver.fit(seen, prototypes=prototypes, logit_scale=scale, hints=hints).predict_proba(asked)
            else:
                scores[method] = solver.fit_predict_proba(seen, prototypes=prototypes, logit_scale=scale)
            seconds[method] = seconds.get(method, 0.0) + time.perf_counter() - start
        for name, values in scores.items():
            correct.setdefault(name, []).append((values.argmax(1) == labels).numpy())
    pooled = {name: np.concatenate(parts) for name, parts in correct.items()}
    best = max(("zero-shot", "descriptions"), key=lambda name: pooled[name].mean())
    return [
        {
            "setting": setting,
            "method": name,
            "n": len(hits),
            "accuracy": percent(hits.mean()),
            "interval": [percent(end) for end in bootstrap_interval(hits)],
            "gain": percent(hits.mean() - pooled[best].mean()),
            "gain_interval": [percent(end) for end in paired_bootstrap(hits, pooled[best])],
            "baseline": best,
            "seconds": round(seconds.get(name, 0.0), 2),
        }
        for name, hits in pooled.items()
    ]


def drawn_rows(labels: Tensor, classes: int, setting: str, draws: int) -> list[Tensor]:
    """Positions of the test images of each draw; settings without chance have one."""
    known = labels >= 0
    if setting in ("inductive", "transductive"):
        return [known.nonzero()[:, 0]]
    if setting.startswith("shots:"):
        return [known.nonzero()[:, 0]] * draws
    result = []
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(classes, generator=generator)
        if setting.startswith("few:"):
            result.append((known & torch.isin(labels, order[: int(setting.removeprefix("few:"))])).nonzero()[:, 0])
        elif setting == "tail":
            parts = []
            for rank, c in enumerate(order):
                own = (labels == c).nonzero()[:, 0]
                count = max(1, round(len(own) * 0.1 ** (rank / max(1, classes - 1))))
                parts.append(own[torch.randperm(len(own), generator=generator)[:count]])
            result.append(torch.cat(parts))
        else:
            raise SystemExit(f"unknown setting {setting}")
    return result


def drawn_shots(labels: Tensor, classes: int, count: int, seed: int) -> Hints:
    """Hints for ``count`` images of each class, or for all where there are fewer."""
    generator = torch.Generator().manual_seed(seed)
    own = [(labels == c).nonzero()[:, 0] for c in range(classes)]
    index = torch.cat([rows[torch.randperm(len(rows), generator=generator)[:count]] for rows in own]).sort().values
    return Hints(index, labels[index])


def take(features: TargetFeatures, rows: Tensor) -> TargetFeatures:
    return TargetFeatures(features.global_[rows], features.cls[rows])


def percent(share: float) -> float:
    return round(100 * float(share), 2)


if __name__ == "__main__":
    main()
