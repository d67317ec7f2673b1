"""Markdown table of what benchmarks/main_job.py measured.

python benchmarks/table.py benchmarks/results/main_job.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(paths: list[str]) -> None:
    rows = [json.loads(line) for path in paths for line in Path(path).read_text().splitlines()]
    print(
        "| set | profile | seed | train / test images | zero-shot | descriptions | adapted | global branch | fine branch | gain | 95 % interval | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["gain_interval"]
        branches = [f"{row['branches'][name]:.1f}" if name in row["branches"] else "" for name in ("global", "fine")]
        cells = [row["set"], row["profile"], row["seed"], f"{row['n_train']} / {row['n_test']}", f"{row['zero_shot']:.1f}"]
        cells += [f"{row['description_ensemble']:.1f}", f"**{row['accuracy']:.1f}**", *branches, f"{row['gain']:+.1f}", f"{low:+.1f} to {high:+.1f}"]
        print("| " + " | ".join(str(cell) for cell in [*cells, round(row["seconds"])]) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
