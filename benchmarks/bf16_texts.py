"""What texts in bfloat16 change: the same photographs, texts encoded in float32 and in bfloat16; one JSON line per set.

    python benchmarks/bf16_texts.py DATA --sets pets37 cifar10 --out benchmarks/results/bf16_texts.jsonl
    python benchmarks/bf16_texts.py --table benchmarks/results/bf16_texts.jsonl

DATA holds one folder per set, as for ``finelens bench``. Of the embedded backbone, its image side as it is on this machine: accuracy in % on the test
part of zero-shot (templates), of the description ensemble and of the default method, which is fitted to the training part (``inductive``) or to the
test part itself (``transductive``), and the share of photographs with the same answer. ``cosine`` and ``error`` compare features of all texts:
the smallest cosine, and the mean norm of the difference.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from asked import data_command, set_parser, tabulated

import finelens
from finelens.bench.rows.context import Context, Start
from finelens.bench.rows.protocols import make_split, parse_protocol
from finelens.bench.rows.runner import answer, zero_shot
from finelens.bench.sets.data import DataSet, read_folder
from finelens.core.console import Console
from finelens.methods.registry import DEFAULT_METHOD
from finelens.storage.cache import state_digest

TYPES = (torch.float32, torch.bfloat16)
PROBE = ("a photo of a cat.",)
PROTOCOLS = ("inductive", "transductive")


def start_of(dtype: torch.dtype) -> Start:
    """The embedded backbone with texts in a type; photographs as by default."""
    start = Start("embedded")
    start.backbone.text_dtype = dtype
    # What tells heads in the cache apart.
    start.texts = state_digest({"probe": start.backbone.encode_text(PROBE)})
    return start


def answers(context: Context) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Answers and truth of the test part, each (N,), by what answered."""
    found = {}
    for name in PROTOCOLS:
        protocol = parse_protocol(name)
        split = make_split(protocol, context.train.truth(), context.test.truth(), context.data.class_names, 0, None)
        if not found:
            found |= {what: (logits.argmax(1), split.truth) for what, logits in zero_shot(context, split).items()}
        logits = answer(context, context.config(DEFAULT_METHOD, 0, {}), protocol, split).logits["logits"]
        found[f"{DEFAULT_METHOD}, {name}"] = logits.argmax(1), split.truth
    return found


def main() -> None:
    parser = set_parser(__doc__)
    given = parser.parse_args()
    if tabulated(given, table):
        return
    for name in given.sets:
        row = {"set": name, **measured(given.data / name), "finelens": finelens.__version__, "torch": torch.__version__, "command": data_command()}
        with given.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def measured(folder: Path) -> dict[str, Any]:
    """The row of a set."""
    data: DataSet = read_folder(folder)
    exact, rounded = (Context(data, start_of(dtype), Console()) for dtype in TYPES)
    # Encoded here, before an engine chooses a type by itself, and remembered.
    texts = [torch.cat(context.heads(data.class_names).texts) for context in (exact, rounded)]
    both, pairs = [answers(context) for context in (exact, rounded)], {}
    for what, (old, truth) in both[0].items():
        new = both[1][what][0]
        pairs[what] = {
            "images": len(truth),
            "float32": round(100 * float((old == truth).mean()), 2),
            "bfloat16": round(100 * float((new == truth).mean()), 2),
            "agreement": round(100 * float((old == new).mean()), 2),
        }
    return {
        "texts": len(texts[0]),
        "cosine": round(float(F.cosine_similarity(*texts).min()), 6),
        "error": round(float((texts[0] - texts[1]).norm(dim=1).mean()), 4),
        **pairs,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy in float32 and bfloat16 with the share of same answers, by set, and the mean change."""
    kinds = ["templates", "descriptions", *(f"{DEFAULT_METHOD}, {name}" for name in PROTOCOLS)]
    lines = ["| set | texts | smallest cosine | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 3) + "|"]
    for row in rows:
        cells = [f"{row[kind]['float32']:.1f}, {row[kind]['bfloat16']:.1f} ({row[kind]['agreement']:.1f} %)" for kind in kinds]
        lines.append(f"| {row['set']} | {row['texts']:,} | {row['cosine']:.5f} | " + " | ".join(cells) + " |")
    changes = [[row[kind]["bfloat16"] - row[kind]["float32"] for row in rows] for kind in kinds]
    lines.append("| mean change (largest) | | | " + " | ".join(f"{mean(own):+.2f} ({max(own, key=abs):+.2f})" for own in changes) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
