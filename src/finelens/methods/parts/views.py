"""Methods that answer for one image from many views of it and train nothing."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from finelens.classes.heads import ClassHeads
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.images.views import views_of_centre
from finelens.methods.parts.frozen import FrozenTask
from finelens.protocol import FeatureRows, InferenceViews
from finelens.training.config import TrainingConfig


class ViewTask(FrozenTask):
    """Encodes the views of an image and leaves the answer to :meth:`answer`.

    Args:
        engine: Runs the backbone.
        head: (C, E), unit-norm rows.
        inference: Views of each image.
    """

    def __init__(self, engine: Engine, head: Tensor, inference: InferenceViews) -> None:
        super().__init__(engine)
        self.inference: InferenceViews = inference
        self.register_buffer("head", head.clone())
        self.head: Tensor
        self.to(engine.device)

    @abstractmethod
    def answer(self, centre: Tensor, views: Tensor) -> Tensor:
        """Logits (B, C) of unit-norm features of the centre view (B, E) and of further views (B, M, E)."""

    def predict_logits(self, images: Tensor) -> dict[str, Tensor]:
        """The answer from views of the centre view, for callers who have nothing else."""
        return self.predict_from_views(images, views_of_centre(images, self.engine.backbone.preprocess, self.inference))

    @torch.no_grad()
    def predict_from_views(self, images: Tensor, views: Tensor) -> dict[str, Tensor]:
        """The answer from views of the image, or from :class:`~finelens.protocol.FeatureRows` of them: the same bits."""
        centre = self._encode(images)  # (B, E)
        further = self._encode(views.flatten(0, 1)).unflatten(0, views.shape[:2])  # (B, M, E)
        # The last bits of a product depend on the number of its rows: each image is answered by itself.
        return {"logits": torch.cat([self.answer(f, g) for f, g in zip(centre.split(1), further.split(1), strict=True)])}

    def _encode(self, views: Tensor) -> Tensor:
        encode = self.engine.encode_frozen if isinstance(views, FeatureRows) else self.engine.encode_each
        return encode(views).global_


@dataclass(frozen=True)
class CropOptions:
    """Options of a method whose views are random regions of the image.

    Attributes:
        head: Text prototypes: the ensemble of ``templates``, or the mean of each class's ``descriptions``.
        views: Views of an image, the centre view among them.
        smallest: Smallest area of a view as a share of the image.
    """

    head: Literal["templates", "descriptions"] = "templates"
    views: int = 64
    smallest: float = 0.08

    def __post_init__(self) -> None:
        require(self.views >= 2, "method.views", "at least 2", self.views)
        require(0 < self.smallest <= 1, "method.smallest", "over 0 and at most 1", self.smallest)


class CropTask(ViewTask):
    """Leaves to :meth:`answer_all` what random regions of an image say of it, the centre view being one of them.

    Args:
        engine: Runs the backbone.
        heads: Text heads of the classes.
        config: Options.
    """

    def __init__(self, engine: Engine, heads: ClassHeads, config: CropOptions) -> None:
        super().__init__(engine, getattr(heads, config.head), InferenceViews(config.views - 1, "resized", config.smallest, 1.0))
        self.config = config

    @classmethod
    def build(cls, engine: Engine, heads: ClassHeads, config: CropOptions, training: TrainingConfig, seed: int) -> Self:
        """The task of a method; arguments are those of :class:`finelens.methods.registry.Method`."""
        return cls(engine, heads, config)

    @abstractmethod
    def answer_all(self, features: Tensor) -> Tensor:
        """Logits (B, C) of the unit-norm features of all views, the centre view first, (B, N, E)."""

    def answer(self, centre: Tensor, views: Tensor) -> Tensor:
        """See :meth:`answer_all`."""
        return self.answer_all(torch.cat([centre[:, None], views], dim=1))
