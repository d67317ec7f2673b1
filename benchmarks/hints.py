"""Writes a hints file from folder names, to measure what a few labelled photographs are worth.

    python benchmarks/hints.py DATA/cifar10 --per-class 4 --seed 0 --out hints.csv
    finelens adapt DATA/cifar10/train --classes DATA/cifar10/classes.txt --method coop --hints hints.csv --out run
    finelens evaluate run DATA/cifar10/test --labels folders

``DATA/SET`` holds ``train/<folder>/*`` and ``classes.txt``. The photographs of a class are drawn at random, the same for the same seed.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from finelens.classes.labels import read_labels
from finelens.classes.names import read_class_file
from finelens.images.randomness import generator, permutation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--per-class", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    names = read_class_file(given.data / "classes.txt")
    labels = read_labels(given.data / "train", "folders", names)
    rows = []
    for number, name in enumerate(names):
        files = sorted(file for file, label in labels.items() if label == number)
        order = permutation(generator(given.seed, 0, name, "hints"), len(files))
        rows += [(files[i], name) for i in sorted(order[: given.per_class])]
    with given.out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    print(f"{len(rows)} photographs of {len(names)} classes")


if __name__ == "__main__":
    main()
