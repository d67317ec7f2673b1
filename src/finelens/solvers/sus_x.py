"""SuS-X (Udandarao, Gupta, Albanie, ICCV 2023) and CapS-Adapter (Wang, Liu, Wang, 2024): caches made of images from outside the target set."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from finelens.errors import UserError
from finelens.protocol import Support
from finelens.solvers.base import Solver, unit_rows
from finelens.solvers.keys import affinities, centred_square, class_votes, matching_weight, one_hot, sharpness_rate
from finelens.solvers.known import Known
from finelens.solvers.parameters import COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, Constraints

# The released temperature 0.5 in units of CLIP's 0.01.
FLATTER = 50.0


class SusX(Solver):
    """Adds to the text logits two votes of a support set: its likeness to the image, and the likeness of their text posteriors (TIP-X).

    Hinted images of the fit join the support set.

    Args:
        support: Features and classes; whoever sets it later does so before ``fit``.
        sharpness: beta in units of the mean distance of images and keys.
        blend: Standard deviation of both votes together over that of the text logits, were they independent of each other.
        chunk_size: Images in work at a time.

    Attributes:
        keys_: (K, D).
        labels_: Class of each key, (K,), int64.
        text_: Scaled prototypes (C, D), float64.
        log_signatures_: Mean log text posterior of each class's keys, (C, C), float64.
        weights_: Of the two votes, (2,), float64.
        beta_: Rate of the affinity, float64.
    """

    state_names: ClassVar[tuple[str, ...]] = ("keys_", "labels_", "text_", "log_signatures_", "weights_", "beta_")
    internal: ClassVar[frozenset[str]] = Solver.internal | {"support"}
    needs_captions: ClassVar[bool] = False
    _parameter_constraints: ClassVar[Constraints] = {"support": [Support, None], "sharpness": POSITIVE, "blend": NOT_NEGATIVE, "chunk_size": COUNT}

    def __init__(self, *, support: Support | None = None, sharpness: float = 1.0, blend: float = 1.0, chunk_size: int = 4096) -> None:
        self.support, self.sharpness, self.blend, self.chunk_size = support, sharpness, blend, chunk_size

    def _keys(self, support: Support, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image features of the support set and what images are compared with, both (K, D)."""
        images = unit_rows(support.features, "support").to(x)
        return images, images

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        support = self._checked_support(x, len(prototypes))
        images, keys = self._keys(support, x)
        rows, hinted = known.ordered()
        images, self.keys_ = torch.cat([images, x[rows]]), torch.cat([keys, x[rows]])
        self.labels_ = torch.cat([support.labels.to(x.device), hinted])
        self.text_ = scale * prototypes.double()
        self.beta_ = sharpness_rate(x, self.keys_, self.sharpness)
        values = one_hot(self.labels_, len(prototypes), self.text_)  # (K, C)
        log_p = (images.double() @ self.text_.T / FLATTER).log_softmax(1)  # (K, C)
        self.log_signatures_ = values.T @ log_p / values.sum(0).clamp_min(1)[:, None]
        text = x @ self.text_.to(x).T
        square = centred_square(text)
        weights = [matching_weight(square, centred_square(votes)) for votes in self._votes(x)]
        # Two independent votes of equal spread have sqrt(2) times the spread of one.
        self.weights_ = self.blend / 2**0.5 * torch.stack(weights)
        return self._log_proba(x)

    def _checked_support(self, x: Tensor, classes: int) -> Support:
        support = self.support
        if support is None:
            raise UserError(f"{type(self).__name__} needs a support set: features and classes of images from outside")
        labels = support.labels
        if support.features.ndim != 2 or support.features.shape[1] != x.shape[1] or labels.shape != support.features.shape[:1] or not len(labels):
            raise UserError(f"support must hold features (K, {x.shape[1]}) of the same model and K classes")
        if not (int(labels.min()) >= 0 and int(labels.max()) < classes):
            raise UserError(f"support must name classes from 0 to {classes - 1}")
        return support

    def _votes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Votes (N, C) by affinity, and by minus the mean divergence of the text posteriors up to a number for each image."""
        values = one_hot(self.labels_, len(self.text_), x)
        keys, text = self.keys_.to(x), self.text_.to(x)
        present = values.sum(0) > 0
        likeness, agreement = [], []
        for chunk in x.split(self.chunk_size):
            likeness.append(class_votes(affinities(chunk, keys, self.beta_), values))
            # sum_k Q_k (log Q_k - log P_jk), averaged over the keys j of a class: the first part is the same for all classes.
            cross = (chunk @ text.T / FLATTER).softmax(1) @ self.log_signatures_.to(x).T  # (chunk, C)
            mean = (cross * present).sum(1, keepdim=True) / present.sum().clamp_min(1)
            agreement.append(cross.where(present, mean))
        return torch.cat(likeness), torch.cat(agreement)

    def _log_proba(self, x: Tensor) -> Tensor:
        likeness, agreement = self._votes(x)
        weights = self.weights_.to(x)
        return (x @ self.text_.to(x).T + weights[0] * likeness + weights[1] * agreement).log_softmax(1)


class CapsAdapter(SusX):
    """SuS-X whose keys are halfway between each support image and its caption.

    Args:
        support: With captions.
        sharpness: See :class:`SusX`.
        blend: See there.
        caption_share: delta, the captions' part of a key.
        chunk_size: See there.
    """

    needs_captions: ClassVar[bool] = True
    _parameter_constraints: ClassVar[Constraints] = {**SusX._parameter_constraints, "caption_share": FRACTION}

    def __init__(
        self, *, support: Support | None = None, sharpness: float = 1.0, blend: float = 1.0, caption_share: float = 0.5, chunk_size: int = 4096
    ) -> None:
        super().__init__(support=support, sharpness=sharpness, blend=blend, chunk_size=chunk_size)
        self.caption_share = caption_share

    def _keys(self, support: Support, x: Tensor) -> tuple[Tensor, Tensor]:
        images, _ = super()._keys(support, x)
        if support.captions is None or support.captions.shape != support.features.shape:
            raise UserError("CapsAdapter needs a caption for every image of the support set")
        captions = unit_rows(support.captions, "captions").to(x)
        # (1 - delta) x K + delta x T is the product with one mixed key.
        return images, (1 - self.caption_share) * images + self.caption_share * captions
