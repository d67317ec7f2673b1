"""Answers of exported files against the float32 run they were made from, on all photographs of the run: the table of docs/export.md.

    finelens adapt pets37/test --classes pets37/classes.txt --out pets37-run
    python benchmarks/export.py pets37-run ...

Needs the extra ``onnx``.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

from finelens.core.console import Console
from finelens.exporting import check, write

CASES: tuple[tuple[write.Target, str], ...] = (("torch", "float32"), ("onnx", "float32"), ("onnx", "float16"), ("onnx", "int8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    runs: list[Path] = parser.parse_args().runs
    check.CHECKED = 1_000_000
    print("| run | target | weights | MB | photographs | largest difference of a logit | equal answers |")
    print("|---|---|---|---|---|---|---|")
    for run in runs:
        for to, weights in CASES:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                found = dataclasses.asdict(write.export(run, out, to=to, weights=weights, console=Console(enabled=False)))  # type: ignore[arg-type]
                size = (out / write.FILES[to]).stat().st_size / 1e6
            share = 100 * found["equal"] / found["images"]
            print(f"| {run.name} | {to} | {weights} | {size:.1f} | {found['images']} | {found['largest']:.1e} | {share:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
