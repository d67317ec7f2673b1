"""Nothing is a matrix of all classes by all classes: the same pairs block by block, and a run of 20,000 classes in little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finelens.evaluation import confusion
from finelens.evaluation.confusion import estimate_confusion, similar_pairs
from finelens.evaluation.metrics import evaluate_predictions

RUN = """
from finelens import api
from finelens.bench.rows.memory import peak_megabytes
from finelens.core.console import Console
api.zero_shot("x.npy", "c.txt", "run", prototypes="p.npy", console=Console(enabled=False))
print(peak_megabytes())
"""


def pairs_by_hand(scores: torch.Tensor, limit: int) -> list[tuple[int, int]]:
    """The whole matrix, sorted: largest first, ties in class order, only what is above zero."""
    count = len(scores)
    found = [(-scores[a, b].item(), a, b) for a in range(count) for b in range(a + 1, count) if scores[a, b] > 0]
    return [(a, b) for _, a, b in sorted(found)[:limit]]


@pytest.mark.parametrize("block", [1, 50, 1 << 22])
@pytest.mark.parametrize("classes", [1, 2, 40])
def test_pairs_do_not_depend_on_the_blocks(monkeypatch, block, classes):
    monkeypatch.setattr(confusion, "BLOCK", block)
    rng = torch.Generator().manual_seed(classes)
    # Whole numbers of few values: many ties, and sums that no order of adding changes.
    p = torch.randint(0, 3, (6, classes), generator=rng).float()
    assert [(pair.first, pair.second) for pair in estimate_confusion(p, 30)] == pairs_by_hand(p.T @ p, 30)
    heads = F.normalize(torch.randn(classes, 5, generator=rng, dtype=torch.float64), dim=1)
    assert [(pair.first, pair.second) for pair in similar_pairs(heads, 30)] == pairs_by_hand(heads @ heads.T, 30)


def test_an_evaluation_of_many_classes_holds_counts_of_what_occurs_only():
    classes = 200_000
    y, p = np.array([0, 7, 7, classes - 1]), np.zeros((4, classes), dtype=np.float32)
    guesses = np.array([0, 7, 3, 3])
    p[np.arange(4), guesses] = 1
    found = evaluate_predictions(y, p, [str(c) for c in range(classes)], zero_shot=y)
    assert found["confusion"] == [[0, 0, 1], [7, 3, 1], [7, 7, 1], [classes - 1, 3, 1]]
    assert found["class_mean_accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)


@pytest.mark.skipif(sys.platform == "win32", reason="memory is measured with resource")
def test_twenty_thousand_classes_stay_below_two_gigabytes(tmp_path: Path):
    rng = np.random.default_rng(0)
    prototypes = rng.normal(size=(20_000, 16)).astype(np.float32)
    np.save(tmp_path / "p.npy", prototypes)
    np.save(tmp_path / "x.npy", prototypes[rng.integers(0, 20_000, 200)])
    (tmp_path / "c.txt").write_text("\n".join(f"Genus{i // 7} species{i}" for i in range(20_000)))
    found = subprocess.run([sys.executable, "-c", RUN], cwd=tmp_path, capture_output=True, text=True, check=True)
    # In MiB; what Linux says of a child by its resource usage begins at what the test process takes.
    assert int(found.stdout) < 2e9 / 2**20
