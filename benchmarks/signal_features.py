"""Features of image folders with train/ and test/, computed once per set and kept as safetensors for ``benchmarks/signals.py``.

python benchmarks/signal_features.py DATA FEATURES --sets pets37 cifar10
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.classes.labels import read_labels
from finelens.classes.names import read_class_file
from finelens.core.console import Console
from finelens.images.batches import centre_batches
from finelens.images.discover import discover
from finelens.images.load import BATCH, decode_limits, load
from finelens.protocol import TargetFeatures
from finelens.runs.prepare import prepare
from finelens.runs.resolve import make_config
from finelens.storage.tensors import save_tensors

QUIET = Console(enabled=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("features", type=Path)
    parser.add_argument("--sets", nargs="+", required=True)
    given = parser.parse_args()
    given.features.mkdir(parents=True, exist_ok=True)
    for name in given.sets:
        target = given.features / f"{name}.safetensors"
        if not target.exists():
            save_tensors(target, compute(given.data / name))
            print(name, flush=True)


@torch.no_grad()
def compute(data: Path) -> dict[str, Tensor]:
    """``train`` and ``test`` as zero-shot sees them, ``*_centred`` as methods do, text heads, true classes of the test part and the logit scale."""
    config = make_config("adapt", str(data), "stata", {"training": {"precision": "float32"}})
    prepared = prepare(config, read_class_file(data / "classes.txt"), data / "descriptions.json", QUIET)
    engine, heads = prepared.engine, prepared.heads
    limits = decode_limits(config.views, engine.backbone.preprocess)

    def features(folder: Path) -> tuple[TargetFeatures, list]:
        loaded = load(discover(folder), limits, QUIET)
        return engine.features(views for _, views in centre_batches(loaded.store, engine.backbone.preprocess, BATCH)), loaded.records

    train, _ = features(data / "train")
    test, records = features(data / "test")
    truth = read_labels(data / "test", "folders", prepared.classes.names)
    rows = sorted((r.index, truth[r.name]) for r in records if r.index is not None)
    assert [index for index, _ in rows] == list(range(len(test.cls)))
    plain = {"train": train.global_, "test": test.global_}
    centred = engine.centre(train)
    project = engine.backbone.project
    return plain | {
        "train_centred": centred.global_,
        "test_centred": F.normalize(project(test.cls), dim=-1),
        "templates": heads.templates,
        "descriptions": heads.descriptions,
        "truth": torch.tensor(np.array([label for _, label in rows])),
        "scale": torch.tensor(float(engine.backbone.logit_scale)),
    }


if __name__ == "__main__":
    main()
