"""Time and memory of the solvers on random features; each row in a process of its own. One JSON line per result.

    OMP_NUM_THREADS=2 python benchmarks/solver_speed.py --out speed.jsonl

``seconds`` is the whole transductive fit by the clock, ``cpu_seconds`` what its threads worked, which a busy machine changes less. The search for
nearest neighbours takes N^2 D and is timed apart (``search_seconds``, ``search_cpu_seconds``); all else should grow linearly with N.
``megabytes_peak`` is the largest resident size of the process with interpreter, libraries and features, ``megabytes_before`` that before the fit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from resident import peak_megabytes
from torch import Tensor

import finelens
from finelens.solvers import Consensus, GdaEm, InMap, JointGmm, SinkhornOt, Solver, StatA, TransClip, ZLaP, consensus, neighbours, zlap

SOLVERS: dict[str, type[Solver]] = {
    "zlap": ZLaP,
    "transclip": TransClip,
    "gda-em": GdaEm,
    "stata": StatA,
    "joint-gmm": JointGmm,
    "consensus": Consensus,
    "ot": SinkhornOt,
    "inmap": InMap,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[5000, 10000, 20000, 50000])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    about = {
        "command": "python " + " ".join(["benchmarks/solver_speed.py", *sys.argv[1:]]),
        "finelens": finelens.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    for method in given.methods:
        for size in given.sizes:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row = pool.apply(measure, (method, size, given.classes, given.width, torch.get_num_threads()))
            with given.out.open("a") as file:
                file.write(json.dumps(row | about) + "\n")
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def measure(method: str, size: int, classes: int, width: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    x, prototypes = random_features(size, classes, width)
    search, before, start = time_searches(), peak_megabytes(), spent()
    SOLVERS[method]().fit_predict_proba(x, prototypes=prototypes, logit_scale=50.0)
    wall, cpu = (after - first for after, first in zip(spent(), start, strict=True))
    return {
        "method": method,
        "n": size,
        "classes": classes,
        "width": width,
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "search_seconds": round(search[0], 2),
        "search_cpu_seconds": round(search[1], 2),
        "megabytes_before": before,
        "megabytes_peak": peak_megabytes(),
    }


def random_features(size: int, classes: int, width: int) -> tuple[Tensor, Tensor]:
    """Features (N, D) around class centres, and prototypes (C, D); noise enough that posteriors stay soft and every round has work to do."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(classes, width, generator=generator), dim=-1)
    x = torch.empty(size, width)
    for rows in x.split(4096):
        own = centres[torch.randint(classes, (len(rows),), generator=generator)]
        rows.copy_(F.normalize(own.add_(torch.randn(len(rows), width, generator=generator), alpha=4 * width**-0.5), dim=-1))
    return x, F.normalize(centres + width**-0.5 * torch.randn(classes, width, generator=generator), dim=-1)


def time_searches() -> list[float]:
    """Wall and CPU seconds of all later searches among the images themselves."""
    total, search = [0.0, 0.0], neighbours.top_neighbours

    def timed(queries: Tensor, keys: Tensor, k: int, *, chunk_size: int, same: bool = False, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        start = spent()
        found = search(queries, keys, k, chunk_size=chunk_size, same=same, rows=rows)
        if same or rows is not None:
            total[:] = [value + after - first for value, after, first in zip(total, spent(), start, strict=True)]
        return found

    replacement: Callable[..., Any] = timed
    neighbours.top_neighbours = replacement
    zlap.top_neighbours = replacement
    consensus.top_neighbours = replacement
    return total


def spent() -> tuple[float, float]:
    """Clock, and processor time of all threads of this process."""
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
