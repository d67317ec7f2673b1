"""Exported files against the float32 run they were made from, on all photographs of the run: the tables of docs/export.md.

    finelens adapt pets37/test --classes pets37/classes.txt --out pets37-run
    python benchmarks/export.py pets37-run ...
    python benchmarks/export.py --speed pets37-run ...

With ``--speed``: photographs a second of onnxruntime and of the run, with the same number of threads, in turn. Needs the extra ``onnx``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path

import torch
from measuring import in_turn, ratios
from torch import Tensor

from finelens.core.console import Console
from finelens.errors import UserError
from finelens.exporting import check, write
from finelens.runs.classifier import Classifier, load_run

CASES: tuple[tuple[write.Target, str, bool], ...] = (
    ("torch", "float32", False),
    ("onnx", "float32", False),
    ("onnx", "float16", False),
    ("onnx", "int8", False),
    ("onnx", "float32", True),
    ("open_clip", "float32", False),
    ("transformers", "float32", False),
)
QUIET = Console(enabled=False)
# Views of a timed call, and repeats.
VIEWS, BATCH, REPEATS = 64, 16, 5


def answers(run: Path) -> None:
    """A row for each target that holds the run."""
    for to, weights, resize in CASES:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            try:
                found = write.export(run, out, to=to, weights=weights, resize=resize, console=QUIET)  # type: ignore[arg-type]
            except UserError as error:
                print(f"| {run.name} | {to} | {weights} | refused: {str(error).partition(';')[0]} |", flush=True)
                continue
            size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
        said = dataclasses.replace(found.files, files=None) if resize and found.files else found
        name = f"{to}, --resize" if resize else to
        through = "" if found.files is None or resize else f"{100 * found.files.equal / found.files.images:.1f} %"
        share = f"{100 * said.equal / said.images:.1f} %"
        print(f"| {run.name} | {name} | {weights} | {size:.1f} | {said.images} | {said.largest:.1e} | {share} | {through} |", flush=True)


def speed(run: Path, threads: int) -> None:
    """A row for each type of weights; one view is asked alone, and all sixteen at a time."""
    classifier = load_run(run)
    sides: dict[str, Classifier] = {"float32": classifier.at_full_precision()}
    own = classifier.model.engine.precision.name
    if own != "float32":
        sides[own] = classifier
    views = check.views_of(check.photographs(run), classifier, QUIET)
    views = tuple(own.repeat(VIEWS // len(own) + 1, 1, 1, 1)[:VIEWS] for own in views)
    with tempfile.TemporaryDirectory() as folder:
        runners = {}
        for weights in ("float32", "float16", "int8"):
            out = Path(folder) / weights
            write.export(run, out, to="onnx", weights=weights, console=QUIET)  # type: ignore[arg-type]
            runners[f"onnxruntime {weights}"] = write.runner(out / write.FILES["onnx"], "onnx", threads=threads)
        everyone = {**{f"finelens {name}": side for name, side in sides.items()}, **runners}
        for batch in (1, BATCH):
            parts = list(zip(*((own[:BATCH] if batch == 1 else own).split(batch) for own in views), strict=True))

            def asked(answer: check.Runner, parts: list[tuple[Tensor, ...]] = parts) -> None:
                for part in parts:
                    answer(*part)

            with torch.no_grad():
                times = in_turn({name: lambda answer=answer: asked(answer) for name, answer in everyone.items()}, REPEATS)
            count = sum(len(part[0]) for part in parts)
            for name, took in times.items():
                factor = ratios(times["finelens float32"], took)["median"]
                print(f"| {run.name} | {batch} | {name} | {count / took.row()['best']:.1f} | {factor:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--speed", action="store_true", help="Measure speed in the place of answers.")
    parser.add_argument("--threads", type=int, default=1, help="Of both sides.")
    parser.add_argument("--most", type=int, default=1_000_000, help="Photographs of a run to compare.")
    given = parser.parse_args()
    check.CHECKED = given.most
    if given.speed:
        torch.set_num_threads(given.threads)
        print(f"load {os.getloadavg()[0]:.1f}, threads {given.threads}")
        print("| run | batch | who | views/s | of finelens float32 |\n|---|---|---|---|---|")
    else:
        print("| run | target | weights | MB | photographs | largest difference of a logit | equal answers | through its own resize |")
        print("|---|---|---|---|---|---|---|---|")
    for run in given.runs:
        if given.speed:
            speed(run, given.threads)
        else:
            answers(run)


if __name__ == "__main__":
    main()
