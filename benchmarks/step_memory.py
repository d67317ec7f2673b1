"""Peak memory of a microCLIP step at ViT-B/32 by batch size, random weights; each row in a process of its own. One JSON line per result.

    OMP_NUM_THREADS=2 python benchmarks/step_memory.py --out benchmarks/results/step_memory.jsonl

``megabytes_peak`` is the largest resident size of the process, with interpreter, libraries, weights, pixels, activations, gradients and the moments
of the optimiser; ``megabytes_before`` the largest before the step, ``megabytes_per_image`` the growth from the row before. One whole step with 8
crops: forwards, loss, backward, AdamW.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path
from typing import Any

import torch
from measuring import PRECISIONS, engine_of, vit_b_32, write
from microclip_step import our_step, views
from resident import peak_megabytes

from finelens.training.schedule import build_optimizer

CROPS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["bfloat16"])
    given = parser.parse_args()
    for precision in given.precisions:
        last: dict[str, Any] | None = None
        for size in given.batches:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row = pool.apply(measure, (size, precision, torch.get_num_threads()))
            if last is not None:
                row["megabytes_per_image"] = round((row["megabytes_peak"] - last["megabytes_peak"]) / (size - last["batch"]), 1)
            write(given.out, row)
            last = row


def measure(size: int, precision: str, threads: int) -> dict[str, Any]:
    """One step of a batch."""
    torch.set_num_threads(threads)
    task, _ = our_step(engine_of(vit_b_32(), precision))
    optimizer = build_optimizer(task, 1e-4)
    before = peak_megabytes()
    task.step(views(size, CROPS), 0, 0).loss.backward()
    optimizer.step()
    return {"precision": precision, "batch": size, "crops": CROPS, "megabytes_before": before, "megabytes_peak": peak_megabytes()}


if __name__ == "__main__":
    main()
