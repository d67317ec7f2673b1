"""Small clouds of unit vectors around class directions, and prototypes that point somewhere near them."""

from __future__ import annotations

import numpy as np

from finelens.solvers import SOLVERS as ALL_SOLVERS
from finelens.solvers import OnlineSolver

__all__ = ["ONLINE", "SCALE", "SOLVERS", "cloud", "unit"]

# The few-shot one cannot be fitted without hints and has tests of its own.
SOLVERS = {name: solver for name, solver in ALL_SOLVERS.items() if name != "gda"}
ONLINE = {name: solver for name, solver in SOLVERS.items() if issubclass(solver, OnlineSolver)}
SCALE = 20.0


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cloud(counts: list[int], dim: int = 16, *, spread: float = 0.15, tilt: float = 0.25, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, D), prototypes (C, D) and classes (N,); ``counts`` images a class, ``tilt`` is the error of the prototypes."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(len(counts), dim)))
    y = np.repeat(np.arange(len(counts)), counts)
    x = unit(centres[y] + spread * rng.normal(size=(len(y), dim)))
    prototypes = unit(centres + tilt * rng.normal(size=centres.shape))
    order = rng.permutation(len(y))
    return x[order], prototypes, y[order]
