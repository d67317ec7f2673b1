"""How near the class prior that is estimated without labels comes to the true one; one JSON line for each set, protocol and seed.

    python benchmarks/class_prior.py DATA --sets pets37 cifar10 --out benchmarks/results/class_prior.jsonl

DATA holds one folder per set, as for ``finelens bench``, whose splits these are. The estimates are those that a run of microCLIP with
``method.marginal=prior`` would begin with: from its frozen head and the features of the unadapted tower. Labels are read afterwards. Distances are
total variation: the share of images that would have to change class, in per cent.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asked import data_command
from torch import Tensor

import finelens
from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.features import take
from finelens.bench.rows.protocols import PartTruth, make_split, parse_protocol
from finelens.bench.sets.data import read_folder
from finelens.core.console import Console
from finelens.solvers.prior import estimate_prior

PROTOCOLS = ("transductive", "transductive+longtail-10", "transductive+partial-half")
STRENGTHS = (0.1, 1.0, 10.0)
NO_TRAINING_PART = PartTruth(np.zeros(0, dtype=np.int64), [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    start = Start("embedded")
    for name in given.sets:
        context = Context(read_folder(given.data / name), start, Console(enabled=False))
        for protocol in PROTOCOLS:
            for seed in range(given.seeds if protocol != "transductive" else 1):
                row = {"set": name, "protocol": protocol, "seed": seed, **measure(context, protocol, seed)}
                row |= {"finelens": finelens.__version__, "command": data_command()}
                with given.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps({key: value for key, value in row.items() if key != "command"}), flush=True)


def measure(context: Context, protocol: str, seed: int) -> dict[str, Any]:
    """Distances of each estimate to the true shares of the classes."""
    split = make_split(parse_protocol(protocol), NO_TRAINING_PART, context.test.truth(), context.data.class_names, seed, None)
    posteriors, classes = start_posteriors(context, split.names, split.test), len(split.names)
    estimates = {
        "uniform": torch.full((classes,), 1 / classes, dtype=torch.float64),
        "answers": torch.bincount(posteriors.argmax(1), minlength=classes).double() / len(posteriors),
        "mean_posterior": posteriors.double().mean(0),
        **{f"em_{strength:g}": estimate_prior(posteriors, concentration=strength) for strength in STRENGTHS},
    }
    labels = torch.from_numpy(context.test.truth().labels[split.test])
    truth = torch.bincount(labels, minlength=classes).double() / len(labels)
    return {"images": len(labels), "classes": classes} | {name: round(100 * distance(found, truth), 2) for name, found in estimates.items()}


@torch.no_grad()
def start_posteriors(context: Context, names: tuple[str, ...], images: np.ndarray) -> Tensor:
    """Posteriors (N, C) of the frozen description head on features with the target's own centre."""
    engine, heads = context.start.engine, context.heads(names)
    before = {name: tensor.clone() for name, tensor in engine.backbone.fitted_state().items()}
    features = engine.centre(take(context.test.features, images))
    for name, tensor in engine.backbone.fitted_state().items():
        tensor.copy_(before[name])
    return (engine.backbone.logit_scale * features.global_ @ heads.weighted.T).softmax(-1)


def distance(a: Tensor, b: Tensor) -> float:
    return 0.5 * float((a - b).abs().sum())


if __name__ == "__main__":
    main()
