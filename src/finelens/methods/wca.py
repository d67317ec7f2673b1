"""WCA (Li et al., ICML 2024, arXiv 2406.02915): visual-text cross alignment. Documentation: docs/methods/wca.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.classes.heads import ClassHeads, pad_descriptions, present_texts, weighted_description_head
from finelens.classes.templates import DEFAULT_TEMPLATES, fill
from finelens.core.options import require
from finelens.engine.engine import Engine
from finelens.methods.descriptions import text_weights
from finelens.methods.parts.frozen import cosine_logits
from finelens.methods.parts.views import ViewTask
from finelens.protocol import Backbone, InferenceViews
from finelens.training.config import TrainingConfig


@dataclass(frozen=True)
class WcaConfig:
    """Options of the method (``--set method.key=value``).

    Attributes:
        crops: Square crops of each image.
        crop_scale: Factor of the crop-to-image cosine inside the softmax that weights the crops.
        text_scale: Factor of the description-to-name cosine inside the softmax that weights the descriptions.
    """

    crops: int = 60
    crop_scale: float = math.exp(4)
    text_scale: float = math.exp(2)

    def __post_init__(self) -> None:
        require(self.crops >= 1, "method.crops", "at least 1", self.crops)
        for name in ("crop_scale", "text_scale"):
            require(0 <= getattr(self, name) < math.inf, f"method.{name}", "at least 0 and finite", getattr(self, name))


CONFIG = WcaConfig


def build(engine: Engine, heads: ClassHeads, config: WcaConfig, training: TrainingConfig, seed: int) -> Wca:
    """The task of this method; arguments are those of :class:`finelens.methods.registry.Method`."""
    # A loaded model brings its own head.
    return Wca(engine, heads.templates if heads.classes is None else class_vectors(engine.backbone, heads, config.text_scale), config)


class Wca(ViewTask):
    """Scores the weighted sum of an image's crops against the weighted sum of each class's descriptions."""

    def __init__(self, engine: Engine, head: Tensor, config: WcaConfig) -> None:
        super().__init__(engine, head, InferenceViews(config.crops))
        self.config = config

    def answer(self, centre: Tensor, views: Tensor) -> Tensor:
        """``s <l2norm(sum_m w_m f_m), W_c>``."""
        return cosine_logits(self.engine, weighted_crops(centre, views, self.config.crop_scale), self.head)


def weighted_crops(image: Tensor, crops: Tensor, crop_scale: float) -> Tensor:
    """``l2norm(sum_m softmax_m(scale <f_m, f>) f_m)``, (B, E).

    Args:
        image: Unit-norm feature of the whole image, (B, E).
        crops: Unit-norm features of its crops, (B, M, E).
        crop_scale: Published: e^4.
    """
    weights = (crop_scale * torch.einsum("bme,be->bm", crops, image)).softmax(-1)
    return F.normalize(torch.einsum("bm,bme->be", weights, crops), dim=-1)


@torch.no_grad()
def class_vectors(backbone: Backbone, heads: ClassHeads, text_scale: float) -> Tensor:
    """``l2norm(sum_j softmax_j(scale <e_cj, n_c>) e_cj)`` with n_c = "a photo of a {class}.", (C, E). Published scale: e^2."""
    assert heads.classes is not None
    names = backbone.encode_text([fill(DEFAULT_TEMPLATES[0], name) for name in heads.classes.names])
    texts = pad_descriptions(heads.sentences)
    present = present_texts(heads.sentences)
    return weighted_description_head(texts, text_weights(texts, present, names.to(texts), "softmax", text_scale))
