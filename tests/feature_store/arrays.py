"""Features and prototypes of an unknown model, and what tests of feature files look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finelens.storage.predictions import read_predictions

N, D = 40, 12


def data(classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Separable features (N, D) and prototypes (C, D) of an unknown model, rows of any length."""
    rng = np.random.default_rng(0)
    prototypes = rng.normal(size=(classes, D))
    features = prototypes[np.arange(N) % classes] + 0.5 * rng.normal(size=(N, D))
    return (3 * features).astype(np.float32), prototypes.astype(np.float32)


def table(path: Path) -> list[tuple[str, str | None]]:
    return [(row.path, row.label) for row in read_predictions(path)]


def warnings_of(run, *arguments: object) -> str:
    code, _, err = run(*arguments)
    assert code == 0
    return " ".join(line for line in err.splitlines() if line.startswith("warning:"))
