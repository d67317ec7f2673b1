"""Small clouds of unit vectors around class directions, and prototypes that point somewhere near them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from finelens.protocol import Support
from finelens.solvers import SOLVERS as REGISTERED
from finelens.solvers import CapsAdapter, OnlineSolver, Solver, SusX


class _Supported(SusX):
    """Makes its own support set from the prototypes of the fit: two keys a class, which follow the class wherever it stands."""

    def _checked_support(self, x: Tensor, classes: int) -> Support:
        text = self.prototypes_
        keys = torch.cat([text + 0.3 * torch.sin(7 * text), text + 0.3 * torch.cos(9 * text)])
        self.support = Support(keys, torch.arange(classes).repeat(2), torch.cat([text, text]))
        found = super()._checked_support(x, classes)
        self.support = None
        del self.prototypes_
        return found

    def _fit(self, x, prototypes, scale, known):
        self.prototypes_ = prototypes
        return super()._fit(x, prototypes, scale, known)


class ToySusX(_Supported):
    pass


class ToyCapsAdapter(_Supported, CapsAdapter):
    pass


# The few-shot one cannot be fitted without hints and has tests of its own.
SOLVERS: dict[str, type[Solver]] = {name: solver for name, solver in REGISTERED.items() if name != "gda"}
SOLVERS |= {"sus-x": ToySusX, "caps-adapter": ToyCapsAdapter}
ONLINE = {name: solver for name, solver in SOLVERS.items() if issubclass(solver, OnlineSolver)}
# Those that need nothing but the target images.
ALONE = {name: solver for name, solver in SOLVERS.items() if not issubclass(solver, SusX)}
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
