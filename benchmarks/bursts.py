"""Bursts simulated from single photographs: what one answer for the group is worth, by rule, and from which cosine two frames are near-copies.

    python benchmarks/bursts.py DATA --sets pets37 --count 150 --out benchmarks/results/bursts.jsonl
    python benchmarks/bursts.py --table benchmarks/results/bursts.jsonl

DATA holds one folder per set, as for ``finelens bench``. Of ``count`` test photographs, spread over all, each becomes a burst of four frames: a
random part of a quarter to all of its area, darker or lighter, often blurred, saved as JPEG; and a fifth frame that is the fourth again, moved by a
hundredth and saved once more. The run adapts to all frames and knows nothing of groups; the rules join its answers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from asked import over_sets
from PIL import Image, ImageEnhance, ImageFilter

from finelens import api
from finelens.bench.sets.data import read_folder
from finelens.core.console import Console
from finelens.evaluation.together import NEAR, group_probabilities, near_copies
from finelens.feature_store.encoder import target_features
from finelens.images.load import load
from finelens.runs.classifier import load_run
from finelens.runs.sources import source_at
from finelens.storage.predictions import softmax

FRAMES, COPY = 4, 4
QUIET = Console(enabled=False)
COSINES = (0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)


def measured(folder: Path, count: int) -> dict[str, Any]:
    """Accuracies by rule, and shares of pairs that each cosine takes for near-copies."""
    data = read_folder(folder)
    truth = data.test.labels
    chosen = np.unique(np.linspace(0, len(data.test.images) - 1, count).round().astype(int))
    with tempfile.TemporaryDirectory() as temporary:
        photos, root = Path(temporary) / "photos", Path(temporary)
        for k, i in enumerate(chosen):
            burst(Image.open(data.test.images[int(i)].path).convert("RGB"), photos / f"{k:04d}", np.random.default_rng(k))
        (root / "classes.txt").write_text("\n".join(data.class_names) + "\n")
        api.adapt(photos, root / "classes.txt", root / "run", descriptions=data.descriptions, console=QUIET)
        classifier = load_run(root / "run")
        found = classifier.predictions(photos)
        order = [record.index for record in found.records]
        p = softmax(found.logits["logits"].numpy())[order]
        loaded = load(source_at(photos).files, classifier.limits, QUIET)
        with classifier.model.unadapted():
            looks = target_features(classifier.model.engine, loaded.store, classifier.limits.short_side, QUIET).global_
        looks = torch.nn.functional.normalize(looks.float(), dim=1).numpy()[[record.index for record in loaded.records]]
    targets = np.repeat(truth.read()[chosen], FRAMES + 1)
    return {"photographs": len(chosen), "frames": FRAMES + 1, **rules(p, targets, looks), "pairs": pairs(looks, len(chosen))}


def burst(image: Image.Image, folder: Path, rng: np.random.Generator) -> None:
    """Four frames of one photograph and a near-copy of the last."""
    folder.mkdir(parents=True)
    for k in range(FRAMES):
        share = rng.uniform(0.25, 1) ** 0.5
        width, height = (max(16, round(share * side)) for side in image.size)
        left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
        frame = ImageEnhance.Brightness(image.crop((left, top, left + width, top + height))).enhance(rng.uniform(0.4, 1.5))
        if rng.random() < 0.5:
            frame = frame.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.02) * min(frame.size)))
        frame.save(folder / f"{k}.jpg", quality=85)
    shift = max(1, round(0.01 * min(frame.size)))
    frame.crop((shift, shift, *frame.size)).save(folder / f"{COPY}.jpg", quality=70)


def rules(p: np.ndarray, targets: np.ndarray, looks: np.ndarray) -> dict[str, float]:
    """Accuracy of frames, and of groups by rule, over all frames but the near-copies."""
    n, size = len(p) // (FRAMES + 1), FRAMES + 1
    groups = [str(i // size) for i in range(len(p))]
    rows = np.arange(0, len(p), size)
    logs = np.log(np.maximum(p, 1e-12)).reshape(n, size, -1)
    votes = np.eye(p.shape[1])[p.argmax(1)].reshape(n, size, -1).sum(1) + 1e-6 * p.reshape(n, size, -1).mean(1)
    alone = np.arange(len(p))
    answers = {
        "mean, near-copies once": group_probabilities(p, groups, near_copies(looks, groups))[rows],
        "mean": group_probabilities(p, groups, alone)[rows],
        "product": logs.sum(1),
        "votes": votes,
        "surest frame": np.stack([own[own.max(1).argmax()] for own in p.reshape(n, size, -1)]),
    }
    frames = (np.arange(len(p)) % size) != COPY
    found = {"frame": float((p.argmax(1) == targets)[frames].mean())}
    return found | {rule: float((own.argmax(1) == targets[rows]).mean()) for rule, own in answers.items()}


def pairs(looks: np.ndarray, n: int) -> dict[str, list[float]]:
    """Share of near-copies, of other pairs of one burst, and of pairs of other photographs that each cosine takes for near-copies."""
    own = looks.reshape(n, FRAMES + 1, -1)
    within = np.einsum("nie,nje->nij", own, own)
    copies = within[:, COPY - 1, COPY]
    upper = np.triu_indices(COPY, 1)
    others = within[:, upper[0], upper[1]].ravel()
    strange = (own[:, 0] @ own[:, 0].T)[np.triu_indices(n, 1)]
    return {str(cosine): [float((values >= cosine).mean()) for values in (copies, others, strange)] for cosine in COSINES}


def table(rows: list[dict[str, Any]]) -> str:
    """Both tables as Markdown."""
    names = [name for name in rows[0] if name not in ("set", "photographs", "frames", "pairs", "finelens", "command")]
    lines = [f"| set | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    lines += [f"| {row['set']} | " + " | ".join(f"{100 * row[name]:.1f}" for name in names) + " |" for row in rows]
    lines += ["", "| set | cosine | near-copies | frames of one burst | other photographs |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        for cosine, shares in row["pairs"].items():
            mark = " (used)" if float(cosine) == NEAR else ""
            lines.append(f"| {row['set']} | {cosine}{mark} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    over_sets(__doc__, 150, lambda folder, count: [measured(folder, count)], table)
