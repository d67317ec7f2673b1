"""Memory of a feature folder, written and asked about, by its number of rows; each row of the result in a process of its own. One JSON line each.

    OMP_NUM_THREADS=1 python benchmarks/feature_scale.py --sizes 10000 100000 1000000 --out scale.jsonl

Rows are synthetic: what an encoder makes of photographs comes from ``numpy`` here, and the names from a counter, so this says nothing about decoding,
encoding and the list of names. ``write`` is ``FolderWriter`` by whole shards, ``predict`` is ``finelens predict`` of a run on features.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resident import peak_megabytes

from finelens import api
from finelens.core.console import Console
from finelens.core.schemas import SCHEMA_VERSION
from finelens.feature_store.files import FORMAT
from finelens.feature_store.folder import SHARD, FolderWriter
from finelens.protocol import ImageRecord

QUIET = Console(enabled=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="Where the features go.  [default: a temporary folder]")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        for size in given.sizes:
            for step in (write, predict):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    row = {"step": step.__name__, "rows": size, **pool.apply(step, (Path(place), size, given.width, given.classes))}
                with given.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


def spent(start: float) -> dict[str, Any]:
    return {"cpu_seconds": round(time.process_time() - start, 1), "megabytes_peak": peak_megabytes()}


def write(place: Path, size: int, width: int, classes: int) -> dict[str, Any]:
    """A folder of so many rows."""
    before, start = peak_megabytes(), time.process_time()
    rng = np.random.default_rng(0)
    metadata = {"format": FORMAT, "schema_version": str(SCHEMA_VERSION)}
    with FolderWriter(place / f"{size}.features", metadata, str(size)) as writer:
        while writer.done < size:
            own = range(writer.done, min(writer.done + SHARD, size))
            rows = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(len(own), width)).astype(np.float32)), dim=1)
            writer.add([ImageRecord(f"{i // 1000:04d}/{i:07d}.jpg", "ok", "", f"{i:064x}") for i in own], {"global": rows, "cls": rows})
        writer.finish()
    return {"megabytes_before": before, **spent(start)}


def predict(place: Path, size: int, width: int, classes: int) -> dict[str, Any]:
    """Classify it."""
    rng = np.random.default_rng(1)
    np.save(place / "w.npy", rng.normal(size=(classes, width)))
    np.save(place / "x.npy", rng.normal(size=(50, width)))
    (place / "classes.txt").write_text("".join(f"kind {c}\n" for c in range(classes)))
    run = place / f"run-{size}"
    api.zero_shot(place / "x.npy", place / "classes.txt", run, prototypes=place / "w.npy", console=QUIET)
    before, start = peak_megabytes(), time.process_time()
    csv = api.predict_to(run, place / f"{size}.features", place / f"{size}.csv", console=QUIET)
    with csv.open("rb") as file:
        assert sum(1 for _ in file) == size + 1
    return {"megabytes_before": before, **spent(start)}


if __name__ == "__main__":
    main()
