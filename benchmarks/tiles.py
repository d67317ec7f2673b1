"""Photographs with several subjects: which of the classes are found with tiles and without, and which are claimed wrongly.

    python benchmarks/tiles.py DATA --sets pets37 caltech101 --count 100 --out benchmarks/results/tiles.jsonl
    python benchmarks/tiles.py --table benchmarks/results/tiles.jsonl

DATA holds one folder per set, as for ``finelens bench``. The run adapts to the train part without labels. ``count`` mosaics of 896 x 896 pixels are
made of four test photographs of four classes each; where they meet is random, between 35 and 65 % of each side, so that no grid fits them. And as
many test photographs as they are, of one subject each, say what tiles claim that is not there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from asked import over_sets
from PIL import Image, ImageOps

from finelens import api
from finelens.bench.sets.data import read_folder
from finelens.core.console import Console
from finelens.images.discover import ImageFile
from finelens.images.tiles import Grid
from finelens.runs.tiled import shown
from finelens.storage.predictions import PredictionRow, read_predictions

QUIET = Console(enabled=False)
SIDE, SUBJECTS = 896, 4
GRIDS = ("2", "3", "3:0.5", "4")
FLOORS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
USED = "0.5"


def measured(folder: Path, count: int) -> list[dict[str, Any]]:
    """A row for each kind of photograph and grid."""
    data = read_folder(folder)
    truth = data.test.labels.read()
    rng = np.random.default_rng(0)
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "classes.txt").write_text("\n".join(data.class_names) + "\n")
        api.adapt(folder / "train", root / "classes.txt", root / "run", descriptions=data.descriptions, console=QUIET)
        present: dict[str, list[set[str]]] = {"mosaics": [], "singles": []}
        for kind in present:
            (root / kind).mkdir()
        for k in range(count):
            classes = rng.choice(np.unique(truth), SUBJECTS, replace=False)
            pictures = [data.test.images[int(rng.choice(np.flatnonzero(truth == c)))] for c in classes]
            mosaic([_opened(own) for own in pictures], rng).save(root / "mosaics" / f"{k:04d}.jpg", quality=90)
            present["mosaics"].append({data.class_names[c] for c in classes})
        for k, i in enumerate(rng.permutation(len(truth))[:count]):
            _opened(data.test.images[int(i)]).save(root / "singles" / f"{k:04d}.jpg", quality=95)
            present["singles"].append({data.class_names[truth[i]]})
        for kind, true in present.items():
            for grid in GRIDS:
                rows = read_predictions(api.predict_to(root / "run", root / kind, root / f"{kind}.csv", tiles=grid, console=QUIET))
                found.append({"photographs": kind, "grid": grid, **scores(rows, true, 1 + len(Grid.parse(grid).boxes))})
    return found


def _opened(picture: Any) -> Image.Image:
    return (Image.open(picture.path) if isinstance(picture, ImageFile) else picture).convert("RGB")


def mosaic(pictures: Sequence[Image.Image], rng: np.random.Generator) -> Image.Image:
    """Four pictures around a point that lies between 35 and 65 % of each side."""
    x, y = (int(share * SIDE) for share in rng.uniform(0.35, 0.65, 2))
    whole = Image.new("RGB", (SIDE, SIDE))
    for picture, (left, top, right, bottom) in zip(pictures, [(0, 0, x, y), (x, 0, SIDE, y), (0, y, x, SIDE), (x, y, SIDE, SIDE)], strict=True):
        whole.paste(ImageOps.fit(picture, (right - left, bottom - top)), (left, top))
    return whole


def scores(rows: Sequence[PredictionRow], present: Sequence[set[str]], size: int) -> dict[str, Any]:
    """Share of the classes that are found, and classes claimed wrongly a photograph: of the whole's answer, of its likeliest four, by floor."""
    photographs = [rows[start : start + size] for start in range(0, len(rows), size)]
    count = len(photographs)
    doubts = np.array([[row.none_of_these or 0.0 for row in views] for views in photographs]) > 0.5
    whole = [set(filter(None, [views[0].label])) for views in photographs]
    four = [{name for name, _ in views[0].top5[:SUBJECTS]} for views in photographs]
    by_floor = {str(floor): [{own.label for own in shown(views, floor)} for views in photographs] for floor in FLOORS}
    answers = {"whole": whole, "four": four, **by_floor}
    wanted = sum(map(len, present))
    return {
        "count": count,
        "refused": float(doubts[:, 1:].mean()),
        "found": {name: sum(len(a & b) for a, b in zip(own, present, strict=True)) / wanted for name, own in answers.items()},
        "wrong": {name: sum(len(a - b) for a, b in zip(own, present, strict=True)) / count for name, own in answers.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    """By grid at the floor that is used, and by floor of the first grid, as Markdown."""
    lines = ["| set | grid | mosaics: found, wrong | one subject: found, wrong | tiles refused |", "|---|---|---:|---:|---:|"]
    sets = list(dict.fromkeys(row["set"] for row in rows))
    for name in sets:
        own = {(row["photographs"], row["grid"]): row for row in rows if row["set"] == name}
        answers = [("no tiles, the answer", GRIDS[0], "whole"), ("no tiles, the likeliest four", GRIDS[0], "four"), *((g, g, USED) for g in GRIDS)]
        for label, grid, answer in answers:
            both = [own[kind, grid] for kind in ("mosaics", "singles")]
            cells = [f"{100 * row['found'][answer]:.1f}, {row['wrong'][answer]:.2f}" for row in both]
            refused = " / ".join(f"{100 * row['refused']:.0f}" for row in both) if answer == USED else ""
            lines.append(f"| {name} | {label} | {' | '.join(cells)} | {refused} |")
    lines += ["", "| set | floor | mosaics: found, wrong | one subject: found, wrong |", "|---|---:|---:|---:|"]
    for name in sets:
        both = [next(row for row in rows if (row["set"], row["photographs"], row["grid"]) == (name, kind, "3")) for kind in ("mosaics", "singles")]
        for floor in map(str, FLOORS):
            cells = [f"{100 * row['found'][floor]:.1f}, {row['wrong'][floor]:.2f}" for row in both]
            lines.append(f"| {name} | {floor}{' (used)' if floor == USED else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    over_sets(__doc__, 100, measured, table)
