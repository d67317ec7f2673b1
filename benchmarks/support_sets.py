"""SuS-X and CapS-Adapter with the training part as support set: an upper bound, because those are labelled photographs of the same distribution.

    python benchmarks/support_sets.py DATA --sets pets37 cifar10 --out benchmarks/results/support_sets.jsonl
    python benchmarks/support_sets.py --table benchmarks/results/support_sets.jsonl

DATA holds one folder per set, as for ``finelens bench``. The support set holds up to so many images a class of ``train/`` with their true classes;
captions are the first built-in template with the class name. The solver is fitted on ``test/`` without labels and scored there. One JSON line a run.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from asked import data_command, set_parser, tabulated

import finelens
from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.features import take
from finelens.bench.rows.measures import measure
from finelens.bench.rows.protocols import Split
from finelens.bench.rows.runner import zero_shot
from finelens.bench.sets.data import read_folder
from finelens.classes.templates import DEFAULT_TEMPLATES, fill
from finelens.core.console import Console
from finelens.feature_store.store import feature_rows
from finelens.images.randomness import generator, permutation
from finelens.methods.parts.support import SupportTask
from finelens.methods.registry import find_method
from finelens.protocol import Support

METHODS = ("sus-x", "caps-adapter")
QUIET = Console(enabled=False)


def main() -> None:
    parser = set_parser(__doc__)
    parser.add_argument("--per-class", type=int, nargs="+", default=[1, 4, 1000], help="most support images a class; 1000 is all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="draws of the support images")
    given = parser.parse_args()
    if tabulated(given, table):
        return
    about = {"finelens": finelens.__version__, "command": data_command()}
    start = Start("embedded")
    for name in given.sets:
        context = Context(read_folder(given.data / name), start, QUIET)
        for method in METHODS:
            for count in given.per_class:
                # All images are drawn in one way only.
                for seed in given.seeds if count < 1000 else [0]:
                    row = {**run(context, method, count, seed), **about}
                    with given.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)


def run(context: Context, method: str, count: int, seed: int) -> dict[str, Any]:
    """One row: support from the training part, fit and answers on the test part."""
    engine, names = context.start.fresh_engine(), context.data.class_names
    config = context.config(method, seed, {})
    task = find_method(method).build(engine, context.heads(names), config.method_options, config.training, seed)
    assert isinstance(task, SupportTask)
    truth, labels = context.test.truth().labels, context.train.truth().labels
    chosen = support_rows(labels, count, seed)
    target = engine.centre(context.test.features)
    # The support set is seen as the run's tower sees it: with the centre of the target images.
    rows = feature_rows(take(context.train.features, chosen), 256)
    features = torch.cat([engine.encode_frozen(part).global_ for part in rows])
    captions = context.start.backbone.encode_text([fill(DEFAULT_TEMPLATES[0], names[label]) for label in labels[chosen]])
    task.prepare(replace(target, support=Support(features, torch.as_tensor(labels[chosen]), captions)))
    logits = {"logits": task.target_log_proba.float().cpu().numpy()}
    everything = np.arange(len(truth))
    split = Split(everything, everything, tuple(names), len(names))
    measures, _ = measure(truth, logits, zero_shot(context, split), names)
    kept = ("accuracy", "accuracy_interval", "zero_shot_accuracy", "description_ensemble_accuracy", "gain", "gain_interval", "baseline", "n")
    row = {"set": context.data.name, "backbone": "embedded", "setting": "train as support, fitted and scored on test", "method": method}
    return row | {"per_class": count, "seed": seed, "support": len(chosen)} | {name: measures[name] for name in kept}


def support_rows(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Up to ``count`` rows of each class, the first of a random order."""
    order = permutation(generator(seed, 0, "support", "support sets"), len(labels))
    taken = [order[labels[order] == c][:count] for c in np.unique(labels)]
    return np.sort(np.concatenate(taken))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: means over draws of the support images; the gain's interval is that of the row with all of them."""
    lines = ["| set | zero-shot | descriptions | method | 1 a class | 4 a class | all | gain with all |", "|---|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["set"] for row in rows):
        for method in METHODS:
            own = [row for row in rows if (row["set"], row["method"]) == (name, method)]
            cells = []
            for count in (1, 4, 1000):
                part = [100 * row["accuracy"] for row in own if row["per_class"] == count]
                cells.append(f"{np.mean(part):.1f}" if part else "-")
            full = next((row for row in own if row["per_class"] == 1000), None)
            gain = "-"
            if full is not None:
                low, high = full["gain_interval"]
                cells[-1] += f" ({full['support']})"
                gain = f"{100 * full['gain']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            first = [f"{100 * own[0][key]:.1f}" for key in ("zero_shot_accuracy", "description_ensemble_accuracy")]
            lines.append(f"| {name} | " + " | ".join([*first, f"`{method}`", *cells, gain]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
