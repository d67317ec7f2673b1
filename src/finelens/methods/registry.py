"""All methods by name. A method is one module with ``CONFIG`` and ``build``, and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finelens.errors import UserError
from finelens.strict import nearest

if TYPE_CHECKING:
    from finelens.config import TrainingConfig
    from finelens.methods.heads import ClassHeads
    from finelens.protocol import Task
    from finelens.training.engine import Engine

    Builder = Callable[[Engine, ClassHeads, Any, TrainingConfig, int], Task]


@dataclass(frozen=True)
class Method:
    """One line of the registry. Naming a method imports nothing; its module is loaded when it is used.

    Attributes:
        name: Lower case, hyphenated.
        family: What kind of method it is.
        summary: One sentence.
        module: Where ``CONFIG`` (a frozen dataclass) and ``build(engine, heads, config, training, seed)`` live.
        trains: Whether it runs the training loop.
    """

    name: str
    family: str
    summary: str
    module: str
    trains: bool

    @property
    def config_class(self) -> type:
        """Frozen dataclass of the method's options."""
        config: type = importlib.import_module(self.module).CONFIG
        return config

    @property
    def build(self) -> Builder:
        """Makes the task."""
        builder: Builder = importlib.import_module(self.module).build
        return builder


METHODS = (
    Method("zero-shot", "text", "The unadapted model with a template ensemble: where every comparison starts.", "finelens.methods.zero_shot", False),
    Method("cupl", "text", "The unadapted model with the mean of each class's descriptions (CuPL).", "finelens.methods.cupl", False),
    Method(
        "microclip",
        "self-training",
        "Coarse-fine token fusion: saliency-led patch pooling, a multi-view text prior and norm tuning.",
        "finelens.methods.microclip",
        True,
    ),
    Method(
        "fair",
        "self-training",
        "Selected crops against trainable description anchors decide weighted pseudo-labels; norms and anchors learn.",
        "finelens.methods.fair",
        True,
    ),
    Method(
        "dpa",
        "self-training",
        "Text and image prototypes decide ranked pseudo-labels together; norms and text prototypes learn.",
        "finelens.methods.dpa",
        True,
    ),
)


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: There is none; the message names the nearest.
    """
    for method in METHODS:
        if method.name == name:
            return method
    near = nearest(name, [method.name for method in METHODS])
    remedy = f"did you mean {near}?" if near else f"known are: {', '.join(method.name for method in METHODS)}"
    raise UserError(f"unknown method {name!r}; {remedy}")
