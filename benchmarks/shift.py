"""Tables of docs/robustness.md from rows of ``finelens bench --corrupt``: accuracies, and how far off those said without labels are.

    python benchmarks/shift.py benchmarks/results/shift.jsonl

Means over data sets that have the row; ``kept`` is the accuracy over that of the same method, protocol and set without corruption.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from finelens.bench.rows.results import Result, read_results
from finelens.bench.sets.corrupted import split_corruption

SAID = ("estimated_accuracy", "estimate_threshold", "estimate_labelled", "estimate_agreement")
PROTOCOLS = ("inductive", "transductive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--level", type=int, default=3)
    given = parser.parse_args()
    rows = [row for row in read_results([given.results]) if row.status == "ok"]
    clean = {(row.key.data, row.key.protocol, row.key.method): row for row in rows if split_corruption(row.key.data)[1] is None}
    shifted = [row for row in rows if split_corruption(row.key.data)[1] is not None]
    levels = [row for row in shifted if named(row)[1] != given.level]
    accuracies([row for row in shifted if named(row)[1] == given.level], clean, given.level)
    severity([row for row in shifted if named(row)[0] in {named(other)[0] for other in levels}], clean)
    said(clean.values(), "no corruption")
    said([row for row in shifted if named(row)[1] == given.level], f"level {given.level}")
    calibration(clean.values(), [row for row in shifted if named(row)[1] == given.level])


def named(row: Result) -> tuple[str, int]:
    """Corruption and level of a row."""
    found = split_corruption(row.key.data)[1]
    assert found is not None
    return found.name, found.level


def accuracies(rows: list[Result], clean: dict[tuple[str, str, str], Result], level: int) -> None:
    methods = sorted({row.key.method for row in rows}, reverse=True)
    columns = [(protocol, method) for protocol in PROTOCOLS for method in methods if (protocol, method) != ("transductive", "zero-shot")]
    print(f"\nLevel {level}: mean accuracy / kept\n")
    print("| corruption | " + " | ".join(f"{method}, {protocol}" for protocol, method in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name in ["none", *dict.fromkeys(named(row)[0] for row in rows), "mean"]:
        cells = []
        for protocol, method in columns:
            own = [row for row in rows if (row.key.protocol, row.key.method) == (protocol, method) and name in (named(row)[0], "mean")]
            if name == "none":
                own = [row for key, row in clean.items() if key[1:] == (protocol, method)]
            kept = np.mean([row.measures["accuracy"] / before(row, clean) for row in own])
            cells.append(f"{mean(own, 'accuracy')}" if name == "none" else f"{mean(own, 'accuracy')} / {kept:.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


def before(row: Result, clean: dict[tuple[str, str, str], Result]) -> float:
    return float(clean[split_corruption(row.key.data)[0], row.key.protocol, row.key.method].measures["accuracy"])


def severity(rows: list[Result], clean: dict[tuple[str, str, str], Result]) -> None:
    sets = {split_corruption(row.key.data)[0] for row in rows if named(row)[1] == 1}
    print(f"\nLevels on {', '.join(sorted(sets))}: mean accuracy, inductive\n")
    levels = sorted({named(row)[1] for row in rows})
    print("| corruption | method | " + " | ".join(map(str, levels)) + " |\n|---|---|" + "---|" * len(levels))
    for name in dict.fromkeys(named(row)[0] for row in rows):
        for method in sorted({row.key.method for row in rows}, reverse=True):
            own = [row for row in rows if (row.key.method, row.key.protocol) == (method, "inductive") and named(row)[0] == name]
            own = [row for row in own if split_corruption(row.key.data)[0] in sets]
            print(f"| {name} | {method} | " + " | ".join(mean([row for row in own if named(row)[1] == level], "accuracy") for level in levels) + " |")


def said(rows: Iterable[Result], what: str) -> None:
    print(f"\nSaid without labels of the test photographs, {what}: mean of what is said, and mean distance from the truth\n")
    print("| protocol | method | true | " + " | ".join(SAID) + " |\n|---|---|---|" + "---|" * len(SAID))
    each(rows, lambda own: [mean(own, "accuracy"), *(f"{mean(own, name)}, {mean(own, error(name))} off" for name in SAID)])


def error(name: str) -> str:
    return "estimate_error" if name == "estimated_accuracy" else f"{name}_error"


def calibration(clean: Iterable[Result], shifted: list[Result]) -> None:
    names = ("ece", "calibrated_ece")
    print(
        "\nCalibration error, none then corrupted\n\n| protocol | method | ece | calibrated_ece | ece | calibrated_ece |\n|---|---|---|---|---|---|"
    )
    kept = list(clean)

    def cells(own: list[Result]) -> list[str]:
        key = own[0].key
        first = [row for row in kept if (row.key.protocol, row.key.method) == (key.protocol, key.method)]
        return [mean(rows, name) for rows in (first, own) for name in names]

    each(shifted, cells)


def each(rows: Iterable[Result], cells: Callable[[list[Result]], list[str]]) -> None:
    groups: dict[tuple[str, str], list[Result]] = {}
    for row in rows:
        groups.setdefault((row.key.protocol, row.key.method), []).append(row)
    for (protocol, method), own in groups.items():
        print(f"| {protocol} | {method} | " + " | ".join(cells(own)) + " |")


def mean(rows: list[Result], measure: str) -> str:
    values = [row.measures[measure] for row in rows if measure in row.measures]
    return f"{100 * np.mean(values):.1f}" if values else "-"


if __name__ == "__main__":
    main()
