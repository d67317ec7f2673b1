"""Do class names say more about the photographs than made-up words? Right names, names of other sets and names that mean nothing; JSON lines.

    python benchmarks/name_sense.py DATA --sets pets37 cifar10 dtd10 --out benchmarks/results/name_sense.jsonl
    python benchmarks/name_sense.py --table benchmarks/results/name_sense.jsonl

DATA holds one folder per set, as for ``finelens bench``. Right names are all of a set and six draws of four and of ten; names that mean nothing are
six draws of four and of ten of a list of words as people type them who try a program out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from asked import data_command, set_parser, tabulated

import finelens
from finelens.bench.rows.context import Context, Start
from finelens.bench.sets.data import read_folder
from finelens.classes.class_set import build_class_set
from finelens.classes.made_up import name_texts
from finelens.core.console import Console
from finelens.evaluation.name_sense import LEAST_SENSE, name_sense

DRAWS, SIZES = 6, (4, 10)
TYPED = (
    *("asdf", "qwer", "zxcv", "hjkl", "foo", "bar", "baz", "qux", "xyzzy", "plugh", "lorem", "ipsum", "class1", "class2", "thing", "stuff"),
    *("justice", "tuesday", "inflation", "verb", "algorithm", "nostalgia", "thirteen", "syntax", "mortgage", "hypothesis"),
)


def main() -> None:
    parser = set_parser(__doc__)
    given = parser.parse_args()
    if tabulated(given, table):
        return
    start = Start("embedded")
    data = {name: read_folder(given.data / name) for name in given.sets}
    command = data_command()
    with given.out.open("w") as file:
        for name, own in data.items():
            context = Context(own, start, Console(enabled=False))
            images, backbone = context.train.features.global_, start.backbone
            for kind, names in cases(name, {other: one.class_names for other, one in data.items()}):
                texts = name_texts(backbone, build_class_set(names, None, None)[0])
                sense = name_sense(images, texts.names, texts.made_up, backbone.logit_scale)
                row = {"set": name, "names": kind, "classes": len(names), "sense": sense}
                file.write(json.dumps({**row, "finelens": finelens.__version__, "command": command}) + "\n")


def cases(own: str, names: dict[str, Sequence[str]]) -> Iterator[tuple[str, Sequence[str]]]:
    yield "all", names[own]
    for kind, source in (("right", names[own]), ("typed", TYPED)):
        for size in SIZES:
            for draw in range(DRAWS if len(source) > size else 0):
                yield kind, [source[i] for i in np.random.default_rng(draw).permutation(len(source))[:size]]
    for other, others in names.items():
        if other != own:
            yield "of another set", others


def table(rows: list[dict[str, Any]]) -> str:
    """Lowest and highest sense of each kind, and how often the names are said to say nothing."""
    lines = ["| set | all right names | 4 of them | 10 of them | typed, 4 | typed, 10 | of another set |", "|---" * 7 + "|"]
    columns = (("right", 4), ("right", 10), ("typed", 4), ("typed", 10), ("of another set", None))
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        cells = [f"{next(row['sense'] for row in own if row['names'] == 'all'):.1f}"]
        for kind, size in columns:
            found = [row["sense"] for row in own if row["names"] == kind and size in (None, row["classes"])]
            said = sum(value < LEAST_SENSE for value in found)
            cells.append(f"{min(found):.1f} to {max(found):.1f} ({said} of {len(found)})" if found else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
