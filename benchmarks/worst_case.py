"""One line a method from results of ``finelens bench``: mean accuracy by protocol, and where it falls furthest below zero-shot.

    python benchmarks/worst_case.py results.jsonl

Means are over data sets and seeds. The last column counts the rows whose 95 % interval of the difference lies wholly below zero.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    given = parser.parse_args()
    rows = [json.loads(line) for path in given.results for line in path.read_text().splitlines()]
    print(table([row for row in rows if row["status"] == "ok"]))


def table(rows: list[dict[str, Any]]) -> str:
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    sets = {p: len({row["data"] for row in rows if row["protocol"] == p}) for p in protocols}
    lines = ["| method | " + " | ".join(f"{p} ({sets[p]})" for p in protocols) + " | furthest below zero-shot | wholly below |"]
    lines.append("|---" * (len(protocols) + 3) + "|")
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        means = [mean_accuracy([row for row in own if row["protocol"] == p]) for p in protocols]
        worst = min(own, key=lambda row: row["measures"]["difference"])
        below = sum(row["measures"]["difference_interval"][1] < 0 for row in own)
        where = f"{100 * worst['measures']['difference']:+.1f} {worst['data']}, {worst['protocol']}"
        lines.append(f"| `{method}` | " + " | ".join(means) + f" | {where} | {below} of {len(own)} |")
    return "\n".join(lines)


def mean_accuracy(rows: list[dict[str, Any]]) -> str:
    """Mean over sets of the means over seeds, in per cent."""
    by_set: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        by_set[row["data"]].append(row["measures"]["accuracy"])
    means = [sum(values) / len(values) for values in by_set.values()]
    return f"{100 * sum(means) / len(means):.1f}" if means else "-"


if __name__ == "__main__":
    main()
