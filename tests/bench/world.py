"""A small data set with a training and a test part, and rows about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.matrix import Plan, compute
from finelens.bench.rows.protocols import parse_protocol
from finelens.bench.rows.results import Key, Result
from finelens.bench.sets.data import read_folder
from tests.toy import CLASSES, QUIET, picture, write_classes

FOLDERS = ("A", "B", "C", "D")


def write_set(folder: Path, train: int = 6, test: int = 3) -> Path:
    """Pictures of four classes; the folders are called otherwise than the classes, and a table says which is which."""
    for part, count, first in (("train", train, 0), ("test", test, 50)):
        for kind, name in enumerate(FOLDERS):
            (folder / part / name).mkdir(parents=True)
            for seed in range(first, first + count):
                Image.fromarray(picture(kind, seed)).save(folder / part / name / f"{seed}.png")
    write_classes(folder / "classes.txt")
    table = [{"dir": own, "name": name} for own, name in zip(FOLDERS, CLASSES, strict=True)]
    (folder / "classes.json").write_text(json.dumps({"classes": table}))
    (folder / "descriptions.json").write_text(json.dumps({name: [f"{name} on grey.", f"a picture with a {name}"] for name in CLASSES}))
    return folder


def make_context(folder: Path, backbone: Path) -> Context:
    return Context(read_folder(folder), Start(f"local:{backbone}", precision="float32"), QUIET)


def row(context: Context, method: str, protocol: str = "inductive", seed: int = 0, options: tuple[str, ...] = (), profile: str = "full") -> Result:
    """One row, computed in this process, in float32."""
    plan = Plan((parse_protocol(protocol),), (method,), (seed,), context.start.spec, profile, ("training.precision=float32", *options))
    key, found = next(plan.keys(context.data.name))
    return compute(context, key, found, plan)


def without_times(result: Result | dict[str, Any]) -> dict[str, Any]:
    """What two equal rows have in common."""
    document = result.to_json() if isinstance(result, Result) else result
    return {name: value for name, value in document.items() if name != "timing"}


def key(**changes: Any) -> Key:
    return Key(**{"data": "toy", "protocol": "inductive", "method": "cupl", "backbone": "embedded", "seed": 0, "profile": "full", **changes})
