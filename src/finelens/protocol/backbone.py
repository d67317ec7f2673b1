"""A dual encoder: pixels and texts in, features out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Interpolation = Literal["bicubic", "bilinear", "nearest"]
ResizeMode = Literal["shortest", "squash"]


@dataclass(frozen=True)
class Preprocess:
    """How pixels become the input of an image tower. Read from the model, never assumed.

    Attributes:
        image_size: Side of the square input, in pixels.
        resize_size: Short side (``squash``: both sides) after the resize, before the centre crop (equal to ``image_size`` for CLIP models).
        mean: Channel means in [0, 1].
        std: Channel standard deviations in [0, 1].
        interpolation: Filter of the resize.
        resize_mode: ``shortest`` keeps the aspect ratio and crops; ``squash`` resizes both sides to ``resize_size``.
    """

    image_size: int
    resize_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    resize_mode: ResizeMode = "shortest"


@dataclass(frozen=True)
class ImageTokens:
    """What an image tower returns for a batch.

    Attributes:
        global_: Unit-norm joint-space features, (B, E).
        cls: Global token before the projection, (B, W).
        patches: Patch tokens of the last block's value path (ViT) or cells of the last feature map (convolutional), neither projected nor
            normalised, (B, N, W); None unless asked for.
    """

    global_: Tensor
    cls: Tensor
    patches: Tensor | None = None


class NotAvailableError(RuntimeError):
    """The backbone lacks an optional capability (visual prompts, differentiable text). The message names it and the remedy."""


class Backbone(nn.Module, ABC):
    """A CLIP-like dual encoder behind one interface.

    Modules are always in evaluation mode: normalisation statistics are frozen. All parameters start with ``requires_grad=False``.

    Attributes:
        name: What the user asked for, e.g. ``open_clip:ViT-B-32/openai`` or ``embedded``.
        preprocess: Input geometry and statistics.
        width: Token width W.
        dim: Joint width E.
        grid: Rows and columns of the patch grid at ``preprocess.image_size``.
        logit_scale: Multiplier of cosine similarities (already exponentiated).
        logit_bias: Additive term of the logits (0 unless the model is sigmoid-trained).
        context_length: Longest text in tokens, special tokens included.
        has_token_sequence: Whether visual prompt tokens can be inserted.
        is_convolutional: Whether patches are cells of a feature map.
        text_dtype: What :meth:`encode_text` computes its products in, ``torch.float32`` or ``torch.bfloat16``; an engine sets it. Only the embedded
            backbone's text tower, which runs on the CPU, knows another than float32; others leave it unread.
    """

    name: str
    preprocess: Preprocess
    width: int
    dim: int
    grid: tuple[int, int]
    logit_scale: float
    logit_bias: float
    context_length: int
    has_token_sequence: bool = False
    is_convolutional: bool = False
    text_dtype: torch.dtype = torch.float32

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 pixels into network input on the device the pixels are on.

        Args:
            images: (..., 3, H, W) uint8.

        Returns:
            Same shape, in the parameters' float type, ``(x / 255 - mean) / std``.
        """
        dtype = next(self.parameters()).dtype
        # In one piece of memory: fresh pages cost as much as the arithmetic.
        x = images.to(dtype, copy=True).div_(255)
        mean = torch.tensor(self.preprocess.mean, dtype=torch.float32, device=x.device).to(dtype).view(3, 1, 1)
        std = torch.tensor(self.preprocess.std, dtype=torch.float32, device=x.device).to(dtype).view(3, 1, 1)
        return x.sub_(mean).div_(std)

    @abstractmethod
    def encode_image(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Encode normalised images.

        Args:
            images: (B, 3, H, W), as :meth:`normalise` returns them.
            patches: Whether to compute patch tokens; they cost extra, so only on request.
            prompts: Visual prompt tokens (P, W), inserted after the class token.

        Raises:
            NotAvailableError: ``prompts`` given to a tower without a token sequence.
        """

    def encode_prefix(self, images: Tensor, last_blocks: int) -> Tensor:
        """Activations (B, ...) of normalised images (B, 3, S, S) before the last so many blocks: what a ``last-k-norm`` scope leaves frozen.

        Raises:
            NotAvailableError: The tower cannot be entered in the middle.
        """
        raise NotAvailableError(f"the image tower of backbone {self.name!r} cannot be entered in the middle; leave training.cached_prefix at 0")

    def encode_suffix(self, prefix: Tensor, last_blocks: int, *, patches: bool = False) -> ImageTokens:
        """What :meth:`encode_image` returns, from the activations (B, ...) that :meth:`encode_prefix` gave for as many last blocks."""
        raise NotAvailableError(f"the image tower of backbone {self.name!r} cannot be entered in the middle; leave training.cached_prefix at 0")

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., W) to the joint space (..., E), not normalised."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (T, L). Special tokens written out in a text are escaped; longer texts are truncated to ``context_length``."""

    @abstractmethod
    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Length of each text in tokens before truncation, special tokens included."""

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm text features (T, E), float32, no gradient."""

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Token embeddings (T, L, W_text) before positions: the place where learned context vectors enter."""
        raise NotAvailableError(f"backbone {self.name!r} has no differentiable text tower; use a method without learned text context")

    def encode_token_embeddings(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Differentiable text features (T, E), unit norm, from embeddings (T, L, W_text) and the ids that place the pooling token."""
        raise NotAvailableError(f"backbone {self.name!r} has no differentiable text tower; use a method without learned text context")

    def release_text(self) -> None:
        """Give back the memory of the text tower; its methods raise or load it again from here on. Default: nothing to give back."""

    @abstractmethod
    def tunable(self, scope: str) -> dict[str, nn.Parameter]:
        """Named parameters that training a scope of the image tower moves; the caller switches ``requires_grad``.

        Scopes: ``none``, ``norm``, ``last-k-norm`` (k a number), ``lora-r`` (r a rank), ``svd``, ``all``. ``lora-r`` and ``svd`` put the matrices of
        the tower into another form until :meth:`merge`.

        Raises:
            UserError: Unknown scope; the message lists those that exist.
        """

    def tunable_text(self, scope: str) -> dict[str, nn.Parameter]:
        """Named parameters that training a scope of the text tower moves: ``svd`` (singular values of the matrices inside its blocks).

        They count in :meth:`encode_token_embeddings` until :meth:`merge`, which leaves the text tower as it was before.

        Raises:
            UserError: Unknown scope.
            NotAvailableError: There is no text tower, or it cannot be differentiated.
        """
        raise NotAvailableError(f"backbone {self.name!r} has no text tower that can be trained")

    def adapted(self, scope: str) -> Mapping[str, Tensor]:
        """Plain image-tower weights that training a scope changes, by name. Default: the trained parameters themselves."""
        return self.tunable(scope)

    def merge(self) -> None:
        """End the use of a scope: every matrix of the image tower becomes a plain weight again, of the value it has now; the text tower is left as it
        was before. Default: nothing to do.
        """

    def fit_centre(self, cls: Tensor) -> None:
        """Take label-free statistics of the target images from their ``cls`` tokens (N, W). Default: nothing to fit."""

    def fitted_state(self) -> dict[str, Tensor]:
        """Tensors that :meth:`fit_centre` set; copying into them restores the fit. Default: none."""
        return {}

    @abstractmethod
    def image_config(self) -> dict[str, Any]:
        """JSON description from which the image side (tower, projection, preprocessing) can be rebuilt without network or text tower."""

    @abstractmethod
    def image_state(self) -> dict[str, Tensor]:
        """Tensors of the image side, in the order and under the names that the rebuilt tower loads."""
