"""A solver that compares photographs with a support set from a folder."""

from __future__ import annotations

from dataclasses import dataclass

from finelens.core.options import require
from finelens.errors import UserError
from finelens.methods.parts.solver import SolverConfig, SolverTask
from finelens.protocol import Support, TargetFeatures


@dataclass(frozen=True)
class SupportConfig(SolverConfig):
    """Options of methods with a support set, which the solver has as its parameter ``support``.

    Attributes:
        support: Folder of the support set; there is no method without.
    """

    support: str | None = None

    def __post_init__(self) -> None:
        require(self.support is None or bool(self.support.strip()), "method.support", "a folder", self.support)
        super().__post_init__()

    @property
    def needs_captions(self) -> bool:
        """Whether every image of the support set needs a caption: what the solver says of itself."""
        return getattr(self.solver, "needs_captions", False)

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
    """Gives the solver the support set that the run encoded, then fits it to the target images."""

    def prepare(self, features: TargetFeatures) -> None:
        """Fit the solver; its state, support set included, becomes the buffers."""
        given = features.support
        if given is not None:
            captions = None if given.captions is None else given.captions.to(self.place)
            self.solver.set_params(support=Support(given.features.to(self.place), given.labels.to(self.place), captions))
        super().prepare(features)
