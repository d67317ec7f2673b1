"""A method's answer as a linear head on the global image feature, for worlds that hold no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.errors import UserError
from finelens.protocol import ImageTokens
from finelens.runs.model import ANSWER, Model

# Of logits that a linear head must give as the method does, and the share of the largest logit that rounding may take.
TOLERANCE, ROUNDING = 1e-2, 1e-5
PROBES, CHUNK = 64, 1024


class NotAHeadError(UserError):
    """The answer rests on more than the global feature; the message is the reason."""


@dataclass(frozen=True)
class LinearHead:
    """Calibrated logits ``W f + b`` of unit-norm features f; where the method gives log-probabilities, up to a number for each image.

    Attributes:
        weight: W (C, E), float32.
        bias: b (C,), float32.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (B, C) of unit-norm features (B, E)."""
        return features @ self.weight.T + self.bias


class _Given:
    """Stands in for a task's engine, and gives features in the place of encoding images."""

    def __init__(self, engine: Any, features: Tensor) -> None:
        self._engine, self._features = engine, features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def encode_frozen(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """The given features; whoever asks for more is refused, and whoever looks at the token gets no numbers."""
        if patches:
            raise NotAHeadError("it looks at the tokens of the patches")
        if prompts is not None:
            raise NotAHeadError("it puts learned prompts into the image tower")
        token = torch.full((len(self._features), self._engine.backbone.width), torch.nan)
        return ImageTokens(self._features, token)


@contextmanager
def _given(task: Any, features: Tensor) -> Iterator[None]:
    engine = task.engine
    task.engine = _Given(engine, features)
    try:
        yield
    finally:
        task.engine = engine


@torch.no_grad()
def answers_to(model: Model, features: Tensor) -> Tensor:
    """The method's calibrated logits (B, C) of unit-norm global features (B, E) alone.

    Raises:
        NotAHeadError: The method looks at something else as well.
    """
    task = model.task
    if task.asks_unadapted:
        raise NotAHeadError("it asks the unadapted image tower as well")
    parts = []
    for rows in features.split(CHUNK):
        with _given(task, rows):
            try:
                logits = task.predict_logits(rows)[ANSWER]
            except NotAHeadError:
                raise
            except UserError as error:
                raise NotAHeadError("it looks at the image tower's token as well") from error
        parts.append(logits)
    logits = model.calibrated(torch.cat(parts).float())
    if not torch.isfinite(logits).all():
        raise NotAHeadError("it looks at the image tower's token as well")
    return logits


def linear_head(model: Model, features: Tensor) -> LinearHead:
    """The linear head that answers as the method does. It is read off the answers to the axes of the feature space, and compared with others.

    Args:
        model: The model.
        features: Unit-norm features (n, E) of some photographs, which must be answered alike; so must be random ones.

    Raises:
        NotAHeadError: The answer is no such head; the message says by how much it differs.
    """
    axes = torch.eye(features.shape[1])
    noise = torch.randn(PROBES, features.shape[1], generator=torch.Generator().manual_seed(0))
    asked = torch.cat([features, F.normalize(noise, dim=1)])
    ahead, behind, wanted = (answers_to(model, rows) for rows in (axes, -axes, asked))  # (E, C), (E, C), (n + PROBES, C)
    head, difference = _read_off(ahead, behind, wanted, asked)
    if not _near(head, difference):
        head, difference = _read_off(_centred(ahead), _centred(behind), _centred(wanted), asked)
    if not _near(head, difference):
        raise NotAHeadError(f"it is no linear function of the image feature (the nearest one differs by {difference:.2g} in a logit)")
    return head


def _read_off(ahead: Tensor, behind: Tensor, wanted: Tensor, asked: Tensor) -> tuple[LinearHead, float]:
    head = LinearHead(((ahead - behind) / 2).T.contiguous(), ((ahead + behind) / 2).mean(0))
    return head, float((head(asked) - wanted).abs().max())


def _centred(logits: Tensor) -> Tensor:
    """A softmax does not see what is added to all classes of an image."""
    return logits - logits.mean(1, keepdim=True)


def _near(head: LinearHead, difference: float) -> bool:
    return difference <= TOLERANCE + ROUNDING * float(head.weight.abs().max())
