"""Photographs of each set given to a run on each other set: how many look unlike, and whether ``predict`` warns.

    python benchmarks/likeness.py DATA --sets pets37 cifar10 dtd10 --out benchmarks/results/likeness.jsonl
    python benchmarks/likeness.py --table benchmarks/results/likeness.jsonl

DATA holds one folder per set, as for ``finelens bench``. The fit is the train part of one set, new is the test part of every set: all of it, 200
draws of 10 and of 34 photographs at random, and, of the same set, the photographs of each class alone.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from asked import data_command, set_parser, tabulated
from torch import Tensor

import finelens
from finelens.bench.rows.context import Context, Start
from finelens.bench.sets.data import read_folder
from finelens.core.console import Console
from finelens.evaluation.familiarity import Familiarity, learn_familiarity

DRAWS, SIZES = 200, (10, 34)


def main() -> None:
    parser = set_parser(__doc__)
    given = parser.parse_args()
    if tabulated(given, tables):
        return
    command = data_command()
    start = Start("embedded")
    contexts = {name: Context(read_folder(given.data / name), start, Console(enabled=False)) for name in given.sets}
    with given.out.open("w") as file:
        for name, context in contexts.items():
            seen = learn_familiarity(context.train.features.global_.half())
            assert seen is not None
            for other, new in contexts.items():
                truth = torch.as_tensor(new.test.truth().labels) if other == name else None
                row = {"fit": name, "new": other, **asked(seen, new.test.features.global_, truth)}
                file.write(json.dumps({**row, "finelens": finelens.__version__, "command": command}) + "\n")


def asked(seen: Familiarity, features: Tensor, truth: Tensor | None) -> dict[str, Any]:
    """What is said of new photographs, and how often of some of them; by class where those are known."""
    likeness, generator = seen.likeness(features), torch.Generator().manual_seed(0)

    def warned(rows: Tensor) -> bool:
        return seen.complaint(likeness[rows]) is not None

    found: dict[str, Any] = {
        "unlike": round(seen.unlike(likeness).double().mean().item(), 4),
        "signs": round((likeness < seen.levels[1]).double().mean().item(), 4),
        "warned": warned(torch.arange(len(likeness))),
    }
    for size in SIZES:
        draws = [warned(torch.randperm(len(likeness), generator=generator)[:size]) for _ in range(DRAWS)]
        found[f"warned_of_{size}"] = sum(draws) / DRAWS
    if truth is not None:
        classes = [warned((truth == c).nonzero()[:, 0]) for c in truth.unique()]
        found |= {"classes": len(classes), "classes_warned": sum(classes)}
    return found


def tables(rows: list[dict[str, Any]]) -> str:
    """Per cent of signs by pair of sets, bold where all of them together get the warning; and how often draws do."""
    sets = list(dict.fromkeys(row["fit"] for row in rows))
    pair = {(row["fit"], row["new"]): row for row in rows}
    lines = ["| fit \\ new | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for fit in sets:
        cells = [f"{100 * pair[fit, new]['signs']:.0f}" for new in sets]
        lines.append(f"| {fit} | " + " | ".join(f"**{c}**" if pair[fit, new]["warned"] else c for c, new in zip(cells, sets, strict=True)) + " |")
    own, other = [row for row in rows if row["fit"] == row["new"]], [row for row in rows if row["fit"] != row["new"]]
    lines += ["", "| | same set, warned | other set, warned |", "|---|---|---|"]
    lines.append(f"| all of the test part | {sum(r['warned'] for r in own)} of {len(own)} | {sum(r['warned'] for r in other)} of {len(other)} |")
    for size in SIZES:
        mean = [f"{100 * sum(r[f'warned_of_{size}'] for r in part) / len(part):.1f} %" for part in (own, other)]
        lines.append(f"| {size} at random, {DRAWS} draws each | {mean[0]} | {mean[1]} |")
    lines.append(f"| one class alone | {sum(r['classes_warned'] for r in own)} of {sum(r['classes'] for r in own)} | |")
    lines.append(f"| a photograph by itself noted as unlike | {_mean(own)} | {_mean(other)} |")
    return "\n".join(lines)


def _mean(rows: list[dict[str, Any]]) -> str:
    return f"{100 * sum(row['unlike'] for row in rows) / len(rows):.1f} %"


if __name__ == "__main__":
    main()
