"""A solver on frozen global features as a method: nothing is trained, its statistics of the target images are the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.frozen import FrozenTask
from finelens.protocol import ImageTokens, TargetFeatures, ViewPlan
from finelens.solvers import Solver
from finelens.training.state import resize_on_load


@dataclass(frozen=True)
class SolverConfig:
    """Options that all solvers share (``--set method.key=value``).

    Attributes:
        head: Text prototypes: mean of each class's ``descriptions`` (templates stand in for a class without), or the ensemble of ``templates``.
    """

    head: Literal["descriptions", "templates"] = "descriptions"


@dataclass(frozen=True)
class StreamConfig(SolverConfig):
    """Options that all solvers share which answer each image when it arrives: their solver is an ``OnlineSolver``."""


def require_prior(prior: str | tuple[float, ...]) -> None:
    """Refuse a list of class shares that cannot be a prior; words are checked with the option's type."""
    if not isinstance(prior, str):
        usable = bool(prior) and all(0 < share < math.inf for share in prior)
        require(usable, "method.prior", "estimated, uniform, or finite numbers above 0, one a class", list(prior))


class SolverTask(FrozenTask):
    """Fits a solver to the target images in :meth:`prepare` and answers for new images one by one.

    Args:
        engine: Runs the backbone.
        heads: Text heads.
        solver: Not fitted yet.
        config: Options.
    """

    views = ViewPlan(weak=False, strong=False)

    def __init__(self, engine: Engine, heads: ClassHeads, solver: Solver, config: SolverConfig) -> None:
        super().__init__()
        object.__setattr__(self, "engine", engine)
        self.engine: Engine
        self.solver = solver
        self.config = config
        self.prototypes = getattr(heads, config.head)
        # Statistics are kept in float64, which Apple's GPUs do not know.
        self.place = torch.device("cpu") if engine.device.type == "mps" else engine.device
        for name in solver.state_names:
            self.register_buffer(name, torch.empty(0, device=self.place))
        resize_on_load(self, *solver.state_names)

    def rows(self, tokens: ImageTokens | TargetFeatures) -> Tensor | list[Tensor]:
        """What the solver takes of the images: their joint-space feature."""
        return tokens.global_.to(self.place)

    def prepare(self, features: TargetFeatures) -> None:
        """Fit the solver; its state becomes the buffers."""
        prototypes, scale = self.prototypes.to(self.place), self.engine.backbone.logit_scale
        probabilities = self.solver.fit_predict_proba(self.rows(features), prototypes=prototypes, logit_scale=scale, hints=features.hints)
        # What the solver says of the images of the fit themselves, (N, C), may rest on more than it keeps; it is no part of the model.
        self.target_log_proba = probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
        for name, tensor in self.solver.state().items():
            setattr(self, name, tensor)

    def notes(self) -> list[str]:
        """What the solver decided."""
        return self.solver.notes()

    @torch.no_grad()
    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Log-probabilities of the images' features under the fitted solver."""
        rows = self.seen(images)
        state = {name: getattr(self, name) for name in self.solver.state_names}
        classes, width = self.prototypes.shape
        solver = self.solver.load_state(state, classes=classes, features=width)
        return {"logits": solver.predict_log_proba(rows).float()}

    def seen(self, images: Tensor) -> Tensor | list[Tensor]:
        """What the solver takes of uint8 centre views (B, 3, S, S), or of :class:`~finelens.protocol.FeatureRows` of them."""
        return self.rows(self.engine.encode_frozen(images))
