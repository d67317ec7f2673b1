"""joint-gmm with a second encoder beside the embedded one, fitted and asked on the test part of labelled sets; one JSON line a run.

    python benchmarks/joint_encoders.py DATA --sets pets37 dtd10 --encoder tf_efficientnet_lite2 --checkpoint lite2.safetensors --out results.jsonl
    python benchmarks/joint_encoders.py --table results.jsonl

DATA holds one folder per set, as for ``finelens bench``; the checkpoint is in timm's layout. Views: ``joint`` is the embedded joint space, ``cls``
the pooled token of its tower, ``second`` the pooled feature of the other encoder.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asked import data_command, set_parser, tabulated
from torch import Tensor

import finelens
from finelens.backbones.registry import load_encoder
from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.measures import measure
from finelens.bench.rows.protocols import Split
from finelens.bench.rows.runner import zero_shot
from finelens.bench.sets.data import read_folder
from finelens.core.console import Console
from finelens.engine.engine import Engine
from finelens.images.batches import centre_batches
from finelens.methods.parts.extra_views import ExtraTask
from finelens.methods.registry import find_method

QUIET = Console(enabled=False)
VIEWS = {"joint": (), "joint + cls": ("cls",), "joint + second": ("second.npy",), "joint + cls + second": ("cls", "second.npy")}


def main() -> None:
    parser = set_parser(__doc__)
    parser.add_argument("--encoder", default="tf_efficientnet_lite2", help="name in timm")
    parser.add_argument("--checkpoint", type=Path)
    given = parser.parse_args()
    if tabulated(given, table):
        return
    about = {
        "encoder": given.encoder,
        "finelens": finelens.__version__,
        "command": data_command(),
    }
    start, backbone = Start("embedded"), load_encoder(f"timm:{given.encoder}@{given.checkpoint}")
    encoder = Engine(backbone, start.engine.device, start.engine.precision)
    for name in given.sets:
        context = Context(read_folder(given.data / name), start, Console())
        images = context.test.images(np.arange(len(context.test.row_digests)))
        second = encoder.features(views for _, views in centre_batches(images, backbone.preprocess, 16)).cls
        for what, extra in VIEWS.items():
            row = {**run(context, what, extra, second), **about}
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def run(context: Context, what: str, extra: tuple[str, ...], second: Tensor) -> dict[str, Any]:
    """One row."""
    engine, names, method = context.start.fresh_engine(), context.data.class_names, find_method("joint-gmm")
    config = context.config("joint-gmm", 0, {"method": {"extra": list(extra)}})
    options = config.method_options
    task = method.build(engine, context.heads(names), options, config.training, 0)
    assert isinstance(task, ExtraTask)
    features = engine.centre(context.test.features)
    task.prepare(replace(features, extra=(second,) * len(options.files)))
    truth = context.test.truth().labels
    rows = np.arange(len(truth))
    logits = {"logits": task.target_log_proba.float().cpu().numpy()}
    measures, _ = measure(truth, logits, zero_shot(context, Split(rows, rows, tuple(names), len(names))), names)
    kept = ("accuracy", "accuracy_interval", "zero_shot_accuracy", "description_ensemble_accuracy", "gain", "gain_interval", "n")
    weights = [round(weight, 3) for weight in task.solver.weights_.tolist()]
    return {"set": context.data.name, "backbone": "embedded", "setting": "transductive", "views": what, "weights": weights} | {
        name: measures[name] for name in kept
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| set | images | zero-shot | descriptions | " + " | ".join(VIEWS) + " | gain of the last |", "|---" * (len(VIEWS) + 5) + "|"]
    for name in dict.fromkeys(row["set"] for row in rows):
        own = {row["views"]: row for row in rows if row["set"] == name}
        last = own["joint + cls + second"]
        low, high = last["gain_interval"]
        cells = [name, str(last["n"]), *(f"{100 * last[key]:.1f}" for key in ("zero_shot_accuracy", "description_ensemble_accuracy"))]
        cells += [f"{100 * own[what]['accuracy']:.1f}" for what in VIEWS]
        lines.append("| " + " | ".join(cells) + f" | {100 * last['gain']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
