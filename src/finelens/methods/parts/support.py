"""A solver that compares photographs with a support set from a folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from finelens.core.options import require
from finelens.errors import UserError
from finelens.methods.parts.solver import SolverConfig, SolverTask
from finelens.protocol import Support, TargetFeatures
from finelens.solvers import SusX


@dataclass(frozen=True)
class SupportConfig(SolverConfig):
    """Options of methods with a support set.

    Attributes:
        support: Folder of the support set; there is no method without.
        sharpness: Rate of the affinity in units of the mean distance.
        blend: Standard deviation of the votes over that of the text logits.
    """

    needs_captions: ClassVar[bool] = False

    support: str | None = None
    sharpness: float = 1.0
    blend: float = 1.0

    def __post_init__(self) -> None:
        require(self.support is None or bool(self.support.strip()), "method.support", "a folder", self.support)
        require(0 < self.sharpness < math.inf, "method.sharpness", "above 0 and finite", self.sharpness)
        require(0 <= self.blend < math.inf, "method.blend", "at least 0 and finite", self.blend)

    def folder(self, method: str) -> str:
        """The folder of the support set.

        Raises:
            UserError: There is none.
        """
        if self.support is None:
            content = "images of each class in a sub-folder" + (" and captions in metadata.csv" if self.needs_captions else "")
            raise UserError(f"method {method} needs a support set: give --set method.support=FOLDER, {content}")
        return self.support


class SupportTask(SolverTask):
    """Gives the solver the support set that the pipeline encoded, then fits it to the target images."""

    solver: SusX

    def prepare(self, features: TargetFeatures) -> None:
        """Fit the solver; its state, support set included, becomes the buffers."""
        given = features.support
        if given is not None:
            captions = None if given.captions is None else given.captions.to(self.place)
            self.solver.support = Support(given.features.to(self.place), given.labels.to(self.place), captions)
        super().prepare(features)
