"""Tip-Adapter and Tip-Adapter-F (Zhang et al.: "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.base import Solver
from finelens.solvers.keys import (
    affinities,
    cache_votes,
    centred_square,
    class_votes,
    confident_rows,
    matching_weight,
    one_hot,
    own_among,
    own_keys,
    sharpness_of_mean,
    sharpness_rate,
    surest_rows,
)
from finelens.solvers.known import Known
from finelens.solvers.parameters import COUNT, NOT_NEGATIVE, POSITIVE, SEED, Constraints
from finelens.solvers.rows import FitRows, TextPass

# Width of the ViT features at which the published learning rate was set.
REFERENCE_WIDTH = 512


class TipAdapter(Solver):
    """Adds to the text logits what a cache of keys votes: the hinted images, or without hints each class's most confident images.

    The vote for a class is the mean of ``exp(-beta (1 - cos))`` over its keys.

    Args:
        shots: Keys of a class when there are no hints; those of largest text posterior among the images that it is the answer for.
        sharpness: beta in units of the mean distance of images and keys.
        blend: Standard deviation of the votes over that of the text logits, after centring over the classes.
        chunk_size: Images in work at a time.

    Attributes:
        keys_: (M, D).
        labels_: Class of each key, (M,), int64.
        text_: Scaled prototypes (C, D), float64.
        alpha_: Weight of the votes, float64.
        beta_: Rate of the affinity, float64.
        mode_: ``few-shot`` with hints, else ``label-free``.
    """

    state_names: ClassVar[tuple[str, ...]] = ("keys_", "labels_", "text_", "alpha_", "beta_")
    _parameter_constraints: ClassVar[Constraints] = {"shots": COUNT, "sharpness": POSITIVE, "blend": NOT_NEGATIVE, "chunk_size": COUNT}

    def __init__(self, *, shots: int = 16, sharpness: float = 1.0, blend: float = 1.0, chunk_size: int = 4096) -> None:
        self.shots, self.sharpness, self.blend, self.chunk_size = shots, sharpness, blend, chunk_size

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        self.text_ = scale * prototypes.double()
        self.mode_ = "few-shot" if len(known) else "label-free"
        text = x @ self.text_.to(x).T  # (N, C)
        rows, self.labels_ = known.ordered() if len(known) else confident_rows(text, self.shots)
        self.keys_ = x[rows]
        self.beta_ = sharpness_rate(x, self.keys_, self.sharpness)
        # New images do not vote for themselves, so the weight must not be set by images that do.
        self.alpha_ = self.blend * matching_weight(centred_square(text), centred_square(self._votes(x, rows)))
        self._train_keys(text[rows])
        return self._log_proba(x)

    def _fit_passes(self, rows: FitRows, prototypes: Tensor, scale: float) -> None:
        self.text_ = scale * prototypes.double()
        self.mode_ = "few-shot" if len(rows.known) else "label-free"
        seen = TextPass(rows, self.text_)
        keys, self.labels_ = rows.known.ordered() if len(rows.known) else surest_rows(seen.confidence, seen.answer, self.shots)
        self.keys_ = rows.at(keys)
        self.beta_ = sharpness_of_mean(seen.mean, self.keys_, self.sharpness)
        # One number of all: from a sample.
        positions = rows.sampled()
        x = rows.at(positions)
        votes = cache_votes(x, self.keys_, self.labels_, self.beta_, len(self.text_), chunk_size=self.chunk_size, own=own_among(keys, positions))
        self.alpha_ = self.blend * matching_weight(centred_square(x @ self.text_.to(x).T), centred_square(votes))
        self._train_keys(self.keys_ @ self.text_.to(x).T)

    def notes(self) -> list[str]:
        """Which images became keys."""
        source = "hinted images" if self.mode_ == "few-shot" else "the most confident images, no labels"
        classes = len(self.labels_.unique())
        return [f"cache: {self.mode_}, {len(self.labels_)} keys from {source}, for {classes} of {len(self.text_)} classes"]

    def _train_keys(self, text: Tensor) -> None:
        """Change the keys, given the text logits (M, C) of their images; here they stay."""

    def _votes(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Votes (N, C); ``rows`` are those of x that the keys were made of, which do not vote for themselves."""
        own = None if rows is None else own_keys(rows, 0, len(x))
        return cache_votes(x, self.keys_.to(x), self.labels_, self.beta_, len(self.text_), chunk_size=self.chunk_size, own=own)

    def _log_proba(self, x: Tensor) -> Tensor:
        return (x @ self.text_.to(x).T + self.alpha_.to(x) * self._votes(x)).log_softmax(1)


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys are then trained with cross-entropy on their own images and classes.

    Args:
        shots: See :class:`TipAdapter`.
        sharpness: See there.
        blend: See there.
        epochs: Passes over the keys.
        lr: First learning rate of AdamW at 512 coordinates; it falls as the square root of the width, as coordinates of unit vectors do.
        batch_size: Keys of a step.
        seed: Order of the keys.
        chunk_size: Images in work at a time.
    """

    internal: ClassVar[frozenset[str]] = Solver.internal | {"batch_size"}
    _parameter_constraints: ClassVar[Constraints] = {
        **TipAdapter._parameter_constraints,
        **dict.fromkeys(("epochs", "batch_size"), COUNT),
        "lr": POSITIVE,
        "seed": SEED,
    }

    def __init__(
        self,
        *,
        shots: int = 16,
        sharpness: float = 1.0,
        blend: float = 1.0,
        epochs: int = 20,
        lr: float = 1e-3,
        batch_size: int = 256,
        seed: int = 0,
        chunk_size: int = 4096,
    ) -> None:
        super().__init__(shots=shots, sharpness=sharpness, blend=blend, chunk_size=chunk_size)
        self.epochs, self.lr, self.batch_size, self.seed = epochs, lr, batch_size, seed

    def _train_keys(self, text: Tensor) -> None:
        images, labels, classes = self.keys_, self.labels_, len(self.text_)
        values = one_hot(labels, classes, images)
        keys = images.clone().requires_grad_(True)
        optimiser = torch.optim.AdamW([keys], lr=self.lr * (REFERENCE_WIDTH / images.shape[1]) ** 0.5, eps=1e-4)
        steps = self.epochs * -(-len(images) // self.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.enable_grad():
            for _ in range(self.epochs):
                for batch in torch.randperm(len(images), generator=generator).to(images.device).split(self.batch_size):
                    votes = class_votes(affinities(images[batch], keys, self.beta_), values)
                    loss = F.cross_entropy(text[batch] + self.alpha_.to(text) * votes, labels[batch])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    schedule.step()
        self.keys_ = keys.detach()
