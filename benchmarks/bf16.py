"""What bfloat16 costs in accuracy: the same images in float32 and in bfloat16, one JSON line per set.

    python benchmarks/bf16.py DATA --sets pets37 cifar10 --out benchmarks/results/bf16.jsonl

DATA holds one folder per set, as for ``finelens bench``. Zero-shot (``templates``) and description ensemble of the unadapted backbone, without a
fitted centre: accuracy on the test images in both precisions, and the share of images, train and test, whose answer is the same. ``cosine`` and
``error`` compare the pooled tokens (``cls``): mean cosine, and mean norm of the difference as a share of the float32 norm.

``--backbone vit-b-32-random`` takes ViT-B/32 with random weights. It knows no class, so the prototypes are the class means of its own float32
features over the test images: it says how often rounding alone changes the nearest prototype, not how accurate a ViT is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import engine_of, vit_b_32, write
from torch import Tensor

from finelens.backbones.registry import load_backbone
from finelens.classes.class_set import build_class_set
from finelens.classes.heads import build_heads
from finelens.classes.labels import read_labels
from finelens.classes.names import read_class_file
from finelens.core.console import Console
from finelens.images.batches import centre_batches
from finelens.images.decode import DecodeLimits
from finelens.images.discover import discover
from finelens.images.store import load_images
from finelens.images.view_config import ViewConfig
from finelens.protocol import Backbone, TargetFeatures

RANDOM_VIT = "vit-b-32-random"
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--parts", nargs="+", choices=("train", "test"), default=["train", "test"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    backbone = vit_b_32() if given.backbone == RANDOM_VIT else load_backbone(given.backbone)
    for name in given.sets:
        features = {part: encode(given.data / name / part, backbone) for part in given.parts}
        write(given.out, {"set": name, "backbone": given.backbone, **compare(given.data / name, backbone, features)})


def encode(folder: Path, backbone: Backbone) -> tuple[list[str], dict[str, TargetFeatures]]:
    """Names of the readable images, and their features in both precisions, in that order."""
    loaded = load_images(discover(folder), DecodeLimits(short_side=max(ViewConfig().store_short_side, backbone.preprocess.resize_size)))
    positions = {record.index: record.name for record in loaded.records if record.index is not None}
    engines = {precision: engine_of(backbone, precision) for precision in ("float32", "bfloat16")}
    parts: dict[str, list[Any]] = {precision: [] for precision in engines}
    with Console().progress(len(loaded.store), f"encode {folder}") as bar:
        for index, views in centre_batches(loaded.store, backbone.preprocess, BATCH):
            for precision, engine in engines.items():
                parts[precision].append(engine.encode_each(views))
            bar.update(len(index))
    found = {p: TargetFeatures(torch.cat([x.global_ for x in rows]), torch.cat([x.cls for x in rows])) for p, rows in parts.items()}
    return [positions[i] for i in range(len(loaded.store))], found


def compare(data: Path, backbone: Backbone, features: dict[str, tuple[list[str], dict[str, TargetFeatures]]]) -> dict[str, Any]:
    """Accuracy in both precisions and agreement."""
    classes = read_class_file(data / "classes.txt")
    names, test = features["test"]
    labels = read_labels(data / "test", "folders", classes)
    truth = torch.tensor([labels[name] for name in names])
    cls = {p: torch.cat([found[p].cls for _, found in features.values()]) for p in test}
    row: dict[str, Any] = {
        "images": len(cls["float32"]),
        "test_images": len(truth),
        "cosine": round(F.cosine_similarity(cls["bfloat16"], cls["float32"]).mean().item(), 6),
        "error": round(((cls["bfloat16"] - cls["float32"]).norm(dim=1) / cls["float32"].norm(dim=1)).mean().item(), 4),
    }
    for name, head in prototypes(backbone, data, test["float32"].global_, truth).items():
        answers = {p: torch.cat([answer(found[p].global_, head) for _, found in features.values()]) for p in test}
        row[name] = {p: round(100 * (answer(test[p].global_, head) == truth).double().mean().item(), 2) for p in test}
        row[name]["agreement"] = round(100 * (answers["float32"] == answers["bfloat16"]).double().mean().item(), 2)
    return row


def prototypes(backbone: Backbone, data: Path, features: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Heads (C, E) by name: those of the texts, or class means for a tower without a text side."""
    classes = read_class_file(data / "classes.txt")
    if backbone.name != "embedded":
        centred = features - features.mean(0)
        means = torch.stack([centred[truth == c].mean(0) for c in range(len(classes))])
        return {"class_means": F.normalize(means, dim=-1)}
    texts, _, _ = build_class_set(
        classes, data / "descriptions.json", None, count_tokens=backbone.count_tokens, context_length=backbone.context_length
    )
    heads = build_heads(backbone, texts)
    return {"templates": heads.templates, "descriptions": heads.descriptions}


def answer(features: Tensor, head: Tensor) -> Tensor:
    """Class (N,) of each image."""
    return (features @ head.T).argmax(1)


if __name__ == "__main__":
    main()
