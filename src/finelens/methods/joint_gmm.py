"""A mixture in several feature spaces; see :class:`finelens.solvers.JointGmm`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.feature_store.files import SUFFIXES
from finelens.methods.parts.solver import SolverConfig, SolverTask, require_prior
from finelens.protocol import FeatureRows, ImageTokens, TargetFeatures
from finelens.solvers import JointGmm
from finelens.training.config import TrainingConfig

# The built-in second view: the tower's pooled token before the projection.
CLS = "cls"


@dataclass(frozen=True)
class JointGmmConfig(SolverConfig):
    """Options of the method.

    Attributes:
        extra: Views beside the joint-space feature: ``cls`` is the tower's pooled token before the projection, anything else the path of a feature
            file of a further encoder; an empty list leaves the first alone.
        extra_names: Text files of row names, for feature files that are arrays of another origin: one for all, or one each.
        prior: ``free`` leaves the class masses alone; ``estimated``, ``uniform``, or one number above 0 a class bring them there.
        anchor: Pseudo-images that hold each mean at its first value.
        confident: Images per class of the first means in the views without text.
        temperature: Divisor of a log-likelihood at 512 coordinates.
        rounds: Rounds of weights, assignments and statistics.
    """

    extra: tuple[str, ...] = (CLS,)
    extra_names: tuple[str, ...] = ()
    prior: Literal["free", "estimated", "uniform"] | tuple[float, ...] = "free"
    anchor: float = 1.0
    confident: int = 8
    temperature: float = 50.0
    rounds: int = 10

    def __post_init__(self) -> None:
        usable = self.extra.count(CLS) <= 1 and all(Path(path).suffix.lower() in SUFFIXES for path in self.files)
        require(usable, "method.extra", "[], or cls and feature files (.safetensors, .npy)", list(self.extra))
        require_prior(self.prior)
        require(0 <= self.anchor < math.inf, "method.anchor", "at least 0 and finite", self.anchor)
        require(self.confident >= 1, "method.confident", "at least 1", self.confident)
        require(0 < self.temperature < math.inf, "method.temperature", "above 0 and finite", self.temperature)
        require(self.rounds >= 1, "method.rounds", "at least 1", self.rounds)

    @property
    def files(self) -> tuple[str, ...]:
        """The feature files among the views."""
        return tuple(entry for entry in self.extra if entry != CLS)


CONFIG = JointGmmConfig


class JointTask(SolverTask):
    """A solver that also sees the tower's pooled token, or features of further encoders."""

    config: JointGmmConfig
    solver: JointGmm
    widths_: Tensor

    def rows(self, tokens: ImageTokens | TargetFeatures) -> Tensor | list[Tensor]:
        """The joint-space feature and the other views."""
        return self._views(tokens, tokens.extra if isinstance(tokens, TargetFeatures) else ())

    def seen(self, images: Tensor) -> Tensor | list[Tensor]:
        """The same of pixels or rows; features of further encoders are the last columns of the rows."""
        if not isinstance(images, FeatureRows):
            return self._views(self.engine.encode_frozen(images), ())
        own = self.engine.backbone.dim + self.engine.backbone.width
        further = images[:, own:].as_subclass(Tensor)
        widths = [width for entry, width in zip(self.config.extra, self.widths_[1:].tolist(), strict=True) if entry != CLS]
        parts = further.split(widths, 1) if widths and further.shape[1] == sum(widths) else ()
        return self._views(self.engine.encode_frozen(images[:, :own]), parts)

    def _views(self, tokens: ImageTokens | TargetFeatures, further: Sequence[Tensor]) -> list[Tensor]:
        count = len(self.config.files)
        if len(further) != count:
            raise UserError(f"features of {count} further encoders are needed with the images, got {len(further)}; give them with --extra FILE")
        left = iter(further)
        views = [tokens.cls if entry == CLS else next(left) for entry in self.config.extra]
        return [view.to(self.place) for view in (tokens.global_, *views)]

    def notes(self) -> list[str]:
        """How much each view weighs."""
        names = ["joint space", *("pooled token" if entry == CLS else Path(entry).name for entry in self.config.extra)]
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, self.solver.weights_.tolist(), strict=True))
        return [*super().notes(), f"weights of the views, found without labels: {weights}"]


def build(engine: Engine, heads: ClassHeads, config: JointGmmConfig, training: TrainingConfig, seed: int) -> JointTask:
    """See :class:`finelens.methods.registry.Method`."""
    solver = JointGmm(prior=config.prior, anchor=config.anchor, confident=config.confident, temperature=config.temperature, rounds=config.rounds)
    return JointTask(engine, heads, solver, config)
