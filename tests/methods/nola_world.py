"""A tiny NoLA whose unlabelled images are a batch."""

from __future__ import annotations

from finelens.methods.nola.config import NolaConfig
from finelens.methods.nola.task import Nola
from finelens.protocol import TargetFeatures
from tests.methods.tiny import separating_rows

B, C, P = 6, 4, 5


def prepared(engine, batch, **options) -> Nola:
    """A task whose unlabelled images are the centre views of ``batch``."""
    task = Nola(engine, separating_rows(engine, batch, C), NolaConfig(**{"prompts": P, **options}))
    tokens = engine.encode_frozen(batch.centre)
    task.prepare(TargetFeatures(tokens.global_, tokens.cls))
    return task
