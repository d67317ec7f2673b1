"""What the stage clip-refine makes of zero-shot and of the default method: one JSON line for each set, learning rate and method.

    python benchmarks/clip_refine.py DATA --sets pets37 cifar10 dtd10 --rates 0 1e-6 1e-4 --out benchmarks/results/clip_refine.jsonl
    python benchmarks/clip_refine.py --table benchmarks/results/clip_refine.jsonl

DATA holds one folder per set, each with ``classes.txt``, ``classes.json`` and ``train/CLASS/`` and ``test/CLASS/``. The stage and the method see
at most 300 training photographs without their folders' names; the accuracy is on at most 500 test photographs (``--most``).
Rate 0 is a run without the stage. The
pairs of the stage are those that it makes itself: the surest half of the photographs of each predicted class, with a filled template.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from asked import set_parser, tabulated

import finelens
from finelens.classes.names import read_class_file
from finelens.core.console import Console
from finelens.images.discover import ImageFile
from finelens.images.load import load
from finelens.runs.fit import fit
from finelens.runs.photo_source import PhotoSource
from finelens.runs.predict import predict_store
from finelens.runs.prepare import prepare, with_method
from finelens.runs.resolve import make_config
from finelens.runs.stage import before_stage, run_stage

METHODS = ("zero-shot", "consensus")


def main() -> None:
    parser = set_parser(__doc__)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.0, 1e-6])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--reference-weight", type=float, default=1.0)
    parser.add_argument("--most", nargs=2, type=int, default=[300, 500], help="training and test photographs; another number takes others")
    given = parser.parse_args()
    if tabulated(given, table):
        return
    if given.data is None or given.out is None:
        parser.error("give DATA --sets ... --out FILE, or --table FILE")
    for name in given.sets:
        for rate, seed in product(given.rates, given.seeds):
            for row in measure(given.data / name, rate, seed, given.reference_weight, *given.most):
                with given.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")


def some(folder: Path, most: int) -> list[ImageFile]:
    """At most so many photographs of a folder, evenly over all of its classes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    step = max(1, -(-len(files) // most))
    return [ImageFile(str(path), path.relative_to(folder).as_posix()) for path in files[::step]]


def measure(place: Path, rate: float, seed: int, weight: float, most_train: int, most_test: int) -> list[dict[str, Any]]:
    """Rows of one set at one learning rate of the stage and weight of its references."""
    console = Console(enabled=False)
    names = read_class_file(place / "classes.txt")
    dirs = {entry["dir"]: c for c, entry in enumerate(json.loads((place / "classes.json").read_text())["classes"])}
    stage = {"name": "clip-refine", "lr": rate, "reference_weight": weight} if rate else {}
    options = {"training": {"precision": "float32"}, "stage": stage}
    config = make_config("adapt", str(place / "train"), METHODS[0], options, seed=seed)
    source = PhotoSource(str(place / "train"), place / "train", listed=tuple(some(place / "train", most_train)))
    prepared = prepare(before_stage(config), names, None, console)
    loaded = source.load(prepared.limits, console)
    if rate:
        prepared = run_stage(prepared, loaded, source, config, console)
    test = load(some(place / "test", most_test), prepared.limits, console)
    truth = {record.index: dirs[record.name.split("/")[0]] for record in test.records if record.index is not None}
    rows = []
    for method in METHODS:
        own = make_config("adapt", str(place / "train"), method, options, seed=seed)
        fitted = fit(with_method(prepared, own), loaded.store, own, console)
        answer = predict_store(fitted.model, test.store, console)["logits"].argmax(1).tolist()
        right = sum(answer[index] == label for index, label in truth.items())
        head = {
            "set": place.name,
            "method": method,
            "stage_lr": rate,
            "reference_weight": weight,
            "seed": seed,
            "n": len(truth),
            "train": len(loaded.store),
        }
        rows.append({**head, "accuracy": right / len(truth), "stage": prepared.stage, "finelens": finelens.__version__})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracy by set and method, a column for a rate and weight of the references, the mean over seeds; and the gap before and after of seed 0."""
    kinds = sorted({_kind(row) for row in rows}, key=lambda kind: (kind[0], -kind[1]))
    heads = [f"lr {rate:g}" + ("" if weight == 1 else f", lambda {weight:g}") if rate else "without" for rate, weight in kinds]
    lines = ["| set | method | " + " | ".join(heads) + " |", "|---" * (2 + len(kinds)) + "|"]
    for name, method in dict.fromkeys((row["set"], row["method"]) for row in rows):
        cells = []
        for kind in kinds:
            found = [100 * row["accuracy"] for row in rows if (row["set"], row["method"], _kind(row)) == (name, method, kind)]
            spread = f" ({min(found):.1f} to {max(found):.1f})" if len(found) > 1 else ""
            cells.append(f"{mean(found):.1f}{spread}" if found else "-")
        lines.append(f"| {name} | {method} | " + " | ".join(cells) + " |")
    lines += ["", "| set | lr | lambda | pairs | steps | gap before | after | pair distance before | after |", "|---" * 9 + "|"]
    for row in rows:
        if row["stage"] and row["method"] == METHODS[0] and row["seed"] == 0:
            stage, before, after = row["stage"], row["stage"]["before"], row["stage"]["after"]
            numbers = " | ".join(f"{part[key]:.4f}" for key in ("gap", "pair_distance") for part in (before, after))
            lines.append(f"| {row['set']} | {row['stage_lr']:g} | {row['reference_weight']:g} | {stage['pairs']} | {stage['steps']} | {numbers} |")
    return "\n".join(lines)


def _kind(row: dict[str, Any]) -> tuple[float, float]:
    return row["stage_lr"], row["reference_weight"]


if __name__ == "__main__":
    main()
