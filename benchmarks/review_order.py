"""How many errors the first looks of a review find: our order against random order and plain uncertainty; one JSON line per set and method.

    python benchmarks/review_order.py DATA --sets pets37 dtd10 --methods stata cupl --out results.jsonl

DATA holds one folder per set, as for ``finelens bench``. Methods are fitted on ``test/`` without its labels, which are read afterwards.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from asked import data_command

import finelens
from finelens import api
from finelens.classes.labels import read_labels
from finelens.classes.names import read_class_file
from finelens.core.console import Console
from finelens.methods.registry import find_method
from finelens.reporting.record import read_run
from finelens.reporting.review.order import looks
from finelens.runs.folder import RunFolder

LOOKS = (20, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", default=["stata"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for name in given.sets:
        for method in given.methods:
            row = {"set": name, "method": method, **compare(given.data / name, method), "finelens": finelens.__version__}
            row["command"] = data_command()
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({key: value for key, value in row.items() if key != "command"}), flush=True)


def compare(data: Path, method: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        verb = api.adapt if find_method(method).adapts else api.zero_shot
        verb(
            data / "test",
            data / "classes.txt",
            Path(scratch) / "run",
            descriptions=data / "descriptions.json",
            method=method,
            console=Console(enabled=False),
        )
        record = read_run(RunFolder.open(Path(scratch) / "run", lock=False))
    names = read_class_file(data / "classes.txt")
    truth = read_labels(data / "test", "folders", names)
    wrong = {row.path: names[truth[row.path]] != row.label for row in record.predicted}
    orders = {
        "ours": [look.row.path for look in looks(record, len(wrong))],
        "uncertainty": [row.path for row in sorted(record.predicted, key=lambda row: row.probability or 0.0)],
    }
    rate = float(np.mean(list(wrong.values())))
    found = {f"{order}_{n}": sum(wrong[path] for path in paths[:n]) for order, paths in orders.items() for n in LOOKS}
    return {"images": len(wrong), "error_rate": round(rate, 4), **{f"random_{n}": round(rate * n, 1) for n in LOOKS}, **found}


if __name__ == "__main__":
    main()
