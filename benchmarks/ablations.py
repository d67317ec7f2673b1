"""Every switch of microCLIP and FAIR off, one at a time, against the method's default.

    python benchmarks/ablations.py DATA --sets pets37 dtd10 --out benchmarks/results/ablations.jsonl
    python benchmarks/ablations.py --table benchmarks/results/ablations.jsonl benchmarks/results/bench_training.jsonl

DATA holds one folder per set, as for ``finelens bench``, which computes the rows: one JSON line each, none computed twice. The default's own rows are
read from any of the files given to ``--table``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from finelens.cli import main as finelens

PROTOCOL, PROFILE = "inductive", "small"
SWITCHES = {
    "microclip": {
        "teacher=head": "no multi-view prior: labels by the learnable head alone",
        "teacher=multi-view-fixed": "labels by the multi-view prior alone",
        "branches=global": "no fine-grained branch",
        "pooling=token-mean": "mean of all cells in place of SOAP",
        "query=token-mean": "SOAP asked by the mean of all cells, no cut",
        "head_init=templates": "learnable head starts from templates",
        "train_head=false": "head fixed",
        "marginal=none": "no marginal term",
        "released_code=true": "rules of the released code",
    },
    "fair": {
        "train_anchors=false": "anchors fixed",
        "crops=0": "no crops: the whole image is scored",
        "keep=16": "no selection of crops",
        "crop_scale=0": "crops weighted equally",
        "pseudo_label=mean": "labels by crops and whole image",
        "weighting=false": "labels not weighted",
        "eta=0": "no ambiguity factor",
        "marginal=none": "no marginal term",
        "inference=las": "prediction with crops",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--sets", nargs="+", default=["pets37", "dtd10"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, nargs="+", help="print the table of files of results")
    given = parser.parse_args()
    if given.table is not None:
        print(table([json.loads(line) for path in given.table for line in path.read_text().splitlines()]))
        return
    if given.data is None or given.out is None:
        parser.error("DATA and --out are needed to run, --table FILES to print")
    for method, switches in SWITCHES.items():
        for switch in [None, *switches]:
            run(method, switch, given.data, given.sets, given.out)


def run(method: str, switch: str | None, data: Path, sets: list[str], out: Path) -> None:
    """Compute the rows of one configuration that are missing."""
    arguments = ["bench", "--data-root", str(data), "--methods", method, "--protocols", PROTOCOL, "--profile", PROFILE, "--out", str(out)]
    for name in sets:
        arguments += ["--data", name]
    if switch is not None:
        arguments += ["--set", f"method.{switch}"]
    try:
        finelens(arguments)
    except SystemExit as stop:
        if stop.code:
            raise


def table(rows: list[dict[str, Any]]) -> str:
    """One line a switch: accuracy on each set, and the difference to the default in brackets."""
    found = {
        (row["method"], tuple(row["options"]), row["data"]): row
        for row in rows
        if (row["protocol"], row["profile"], row["seed"]) == (PROTOCOL, PROFILE, 0)
    }
    sets = list(dict.fromkeys(data for _, options, data in found if options))
    lines = ["| method | switch | what it leaves out | " + " | ".join(sets) + " |", "|---" * (len(sets) + 3) + "|"]
    for method, switches in SWITCHES.items():
        base = [found.get((method, (), data)) for data in sets]
        lines.append(f"| `{method}` | default | | " + " | ".join(cell(row, None) for row in base) + " |")
        for switch, meaning in switches.items():
            cells = [cell(found.get((method, (f"method.{switch}",), data)), default) for data, default in zip(sets, base, strict=True)]
            lines.append(f"| `{method}` | `{switch}` | {meaning} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(row: dict[str, Any] | None, base: dict[str, Any] | None) -> str:
    """Accuracy in per cent, and the difference to the default's; the status of a row without a number."""
    if row is None:
        return "-"
    if row["status"] != "ok":
        return str(row["status"]).replace("_", " ")
    value = 100 * row["measures"]["accuracy"]
    return f"{value:.1f}" if base is None or base["status"] != "ok" else f"{value:.1f} ({value - 100 * base['measures']['accuracy']:+.1f})"


if __name__ == "__main__":
    main()
