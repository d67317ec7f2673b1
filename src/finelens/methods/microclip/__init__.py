"""microCLIP: unsupervised adaptation by coarse-fine token fusion. Documentation: docs/methods/microclip.md."""

from __future__ import annotations

from finelens.classes.heads import ClassHeads
from finelens.engine.engine import Engine
from finelens.methods.microclip.config import MicroClipConfig
from finelens.methods.microclip.task import MicroClip
from finelens.training.config import TrainingConfig

CONFIG = MicroClipConfig
BEFORE = {"salient_side": "as-solved"}


def build(engine: Engine, heads: ClassHeads, config: MicroClipConfig, training: TrainingConfig, seed: int) -> MicroClip:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    return MicroClip(engine, heads, config, scope=training.scope, weight_decay=training.weight_decay, seed=seed)
