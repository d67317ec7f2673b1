"""CapS-Adapter; see :class:`finelens.solvers.CapsAdapter`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.parts.support import SupportConfig, SupportTask
from finelens.solvers import CapsAdapter
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class CapsAdapterConfig(SupportConfig):
    """Options of the method.

    Attributes:
        caption_share: Part of the captions in a key.
    """

    needs_captions: ClassVar[bool] = True

    caption_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.caption_share <= 1, "method.caption_share", "between 0 and 1", self.caption_share)


CONFIG = CapsAdapterConfig


def build(engine: Engine, heads: ClassHeads, config: CapsAdapterConfig, training: TrainingConfig, seed: int) -> SupportTask:
    """See :class:`finelens.methods.registry.Method`."""
    solver = CapsAdapter(caption_share=config.caption_share, sharpness=config.sharpness, blend=config.blend)
    return SupportTask(engine, heads, solver, config)
