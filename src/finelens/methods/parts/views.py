"""Methods that answer for one image from many views of it and train nothing."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from finelens.engine.engine import Engine
from finelens.images.views import views_of_centre
from finelens.methods.parts.frozen import FrozenTask
from finelens.protocol import FeatureRows, InferenceViews


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
