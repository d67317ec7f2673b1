"""The labelling network of NoLA: which images teach it, and how. Shapes: N images, M kept, C classes, D2 width of the second encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finelens.core.console import Console
from finelens.images.randomness import generator, permutation, seed_for
from finelens.methods.text_classifier import linear_start
from finelens.protocol import Hints
from finelens.training.state import resize_on_load

HIDDEN = 256
BATCH = 32
LR = 1e-3
# A class that is nobody's first choice may take images of which it is the second, then the third.
PLACES = 3


def select_confident(posteriors: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The most confident images of each predicted class; no image serves two classes.

    A class that is no image's first choice takes images of which it is the second choice, and failing that the third, among those that no other class
    has taken. A class may end without any.

    Args:
        posteriors: (N, C).
        keep: Images per class.

    Returns:
        Positions (M,) and classes (M,), by class as it was served, most confident first; equal images in store order.
    """
    choices = posteriors.topk(min(PLACES, posteriors.shape[1]), dim=1).indices  # (N, up to 3)
    free = torch.ones(len(posteriors), dtype=torch.bool, device=posteriors.device)
    served: dict[int, Tensor] = {}
    for choice in choices.unbind(1):
        for c in range(posteriors.shape[1]):
            candidates = ((choice == c) & free).nonzero()[:, 0] if c not in served else choice[:0]
            if len(candidates):
                order = posteriors[candidates, c].argsort(descending=True, stable=True)[:keep]
                served[c] = candidates[order]
                free[served[c]] = False
    labels = [torch.full_like(positions, c) for c, positions in served.items()]
    return torch.cat(list(served.values())), torch.cat(labels)


def with_hints(positions: Tensor, labels: Tensor, hints: Hints | None) -> tuple[Tensor, Tensor]:
    """The chosen images with hinted ones among them, as what they were hinted.

    Args:
        positions: Of the chosen images, (M,).
        labels: Their classes, (M,).
        hints: Of the run; None without.
    """
    if hints is None:
        return positions, labels
    index, label = hints.index.to(positions.device), hints.label.to(labels.device)
    others = ~torch.isin(positions, index)
    return torch.cat([positions[others], index]), torch.cat([labels[others], label])


class LabellingNetwork(nn.Module):
    """MLP D2 - 256 - C with ReLU. Its weights are buffers: trained once before the loop, then frozen, and part of the task's state."""

    names = ("hidden_weight", "hidden_bias", "output_weight", "output_bias")

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        for name in self.names:
            self.register_buffer(name, torch.zeros(0, dtype=dtype))
        resize_on_load(self, *self.names)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, D2)."""
        return _mlp(features, *(getattr(self, name) for name in self.names))

    def fit(self, features: Tensor, labels: Tensor, classes: int, *, epochs: int, seed: int, console: Console) -> None:
        """Cross-entropy by Adam at 1e-3, batches of 32.

        Args:
            features: Of the kept images, (M, D2).
            labels: (M,).
            classes: C.
            epochs: Passes over the kept images.
            seed: Seed of the start and of the order.
            console: Shows the progress.
        """
        rng = torch.Generator().manual_seed(seed_for(seed, "labelling network"))
        layers = ((HIDDEN, features.shape[1]), (classes, HIDDEN))
        # Weight and bias of a layer start from the same range.
        starts = [start for rows, inputs in layers for start in (linear_start(rows, inputs, rng), linear_start(rows, inputs, rng)[:, 0])]
        weights = [start.to(features).requires_grad_() for start in starts]
        optimizer = torch.optim.Adam(weights, lr=LR)
        with console.progress(epochs, "train labelling network", "epoch") as bar, torch.enable_grad():
            for epoch in range(epochs):
                order = torch.from_numpy(permutation(generator(seed, epoch, "", "labelling network"), len(features)))
                for rows in order.split(BATCH):
                    optimizer.zero_grad()
                    F.cross_entropy(_mlp(features[rows], *weights), labels[rows]).backward()
                    optimizer.step()
                bar.update(1)
        for name, weight in zip(self.names, weights, strict=True):
            setattr(self, name, weight.detach())


def _mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)
