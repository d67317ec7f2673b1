"""Processor time, memory and answers of solvers, of another checkout and of this one in turn. One JSON line per fit, and one per comparison.

    git worktree add ../before 3a1909f
    OMP_NUM_THREADS=1 python benchmarks/solver_versions.py --before ../before/src --out versions.jsonl

Every fit is a process of its own on the same features (``random_features`` of ``solver_speed.py``); sides take turns, so that both see the same load.
A comparison has the least processor seconds and the largest resident size of each side, and the share of images with the same answer. Every row
says what the processor has for products in bfloat16: the ratios depend on it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from resident import peak_megabytes

NAMES = {"stata": "StatA", "transclip": "TransClip", "gda-em": "GdaEm", "zlap": "ZLaP"}
THIS = Path(__file__).resolve().parent.parent / "src"


def main() -> None:
    # Not where a fit runs: the other checkout need not have what it imports.
    from solver_speed import random_features

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the src folder of the other checkout")
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--sizes", nargs="+", default=["20000x500", "50000x1000"], help="images x classes, of 512 columns")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for size in given.sizes:
        images, classes = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            torch.save(random_features(images, classes, 512), Path(folder) / "features.pt")
            for method in given.methods:
                compare(method, size, given, Path(folder))


def compare(method: str, size: str, given: argparse.Namespace, folder: Path) -> None:
    from finelens.core.private_torch import bfloat16_units

    sides: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
    about = {"method": method, "size": size, "bfloat16_units": bfloat16_units(), "torch": torch.__version__}
    for _ in range(given.turns):
        for side, source in (("before", given.before), ("now", THIS)):
            answers = folder / f"{side}.pt"
            command = [sys.executable, __file__, "--fit", method, str(folder / "features.pt"), str(answers)]
            said = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(source)}, check=True, capture_output=True, text=True).stdout
            sides[side].append(json.loads(said))
            keep(given.out, {"side": side, **about, **sides[side][-1], "load": round(os.getloadavg()[0], 1)})
    same = float((torch.load(folder / "before.pt") == torch.load(folder / "now.pt")).float().mean())
    seconds = {side: min(row["cpu_seconds"] for row in rows) for side, rows in sides.items()}
    peaks = {side: max(row["megabytes_peak"] for row in rows) for side, rows in sides.items()}
    ratio = round(seconds["before"] / seconds["now"], 2)
    row = {
        "side": "both",
        **about,
        "turns": given.turns,
        "cpu_seconds": seconds,
        "ratio": ratio,
        "megabytes_peak": peaks,
        "same_answer": round(same, 6),
    }
    keep(given.out, row)
    print(json.dumps(row), flush=True)


def keep(out: Path, row: dict[str, Any]) -> None:
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")


def fit(method: str, features: Path, answers: Path) -> None:
    """One fit in this process, with whichever finelens is on the path."""
    from finelens import solvers

    x, prototypes = torch.load(features)
    start = time.process_time()
    found = getattr(solvers, NAMES[method])().fit_predict_proba(x, prototypes=prototypes, logit_scale=50.0)
    seconds = time.process_time() - start
    torch.save(found.argmax(1), answers)
    print(json.dumps({"cpu_seconds": round(seconds, 2), "megabytes_peak": peak_megabytes(), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fit"]:
        fit(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
