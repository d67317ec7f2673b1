"""Whether a model knows its classes well enough to be trained on its own answers, judged without labels. Documentation: docs/guard.md."""

from __future__ import annotations

import torch
from torch import Tensor

# Nine tenths of the smallest share measured on the sets that defaults may come from, with all their classes present: docs/guard.md.
LEAST = 0.11
# With fewer images the mean posterior says too little.
FEW_IMAGES = 50
# Entropy of the classes, in nats, below which there is one class to all purposes.
NOTHING = 1e-9

REMEDY = (
    "--method auto takes a method that trains nothing, which does far better with a few labelled photographs (finelens review makes a sheet to label "
    "them on, --hints takes it). Other class names or descriptions may help; --set training.guard=off trains all the same"
)


def too_weak(templates: Tensor, descriptions: Tensor | None) -> str | None:
    """Say why a start is too weak to train on, half a sentence; None if it is not, or if the images are too few to tell.

    Args:
        templates: Logits (N, C) of the unadapted model with templates.
        descriptions: The same with descriptions; None without any.
    """
    if not is_weak(len(templates), start_information(templates, descriptions)):
        return None
    known, needed = f"{information(templates):.1%}", f"{LEAST:.0%}"
    if descriptions is not None:
        known, needed = f"{known} with templates and {information(descriptions):.1%} with descriptions", f"{needed} with both"
    return f"of what it would take to name its class a photograph tells the starting model only {known}; training needs {needed}"


def is_weak(images: int, known: float | None) -> bool:
    """Whether so much information about so many images is too little to train on; not where it is unknown."""
    return images >= FEW_IMAGES and known is not None and known < LEAST


def start_information(templates: Tensor, descriptions: Tensor | None) -> float:
    """:func:`information` of the text that knows less, since methods start from either; arguments as for :func:`too_weak`."""
    return min(information(logits) for logits in (templates, descriptions) if logits is not None)


@torch.no_grad()
def information(logits: Tensor) -> float:
    """Share of the uncertainty about an image's class that looking at the image removes, by the posteriors' own account, in [0, 1].

    ``1 - mean_i H(p_i) / H(mean_i p_i)``: the mutual information of image and class (what Krause, Perona and Gomes, "Discriminative Clustering by
    Regularized Information Maximization", 2010, maximise) over the entropy of the classes. Unequal classes do not lower it; posteriors that are surer
    than they should be raise it. Rounded to 4 digits, so that the last bits of a sum decide nothing; 1 where there is nothing to tell apart.

    Args:
        logits: (N, C).
    """
    if not logits.numel():
        return 1.0
    p = logits.double().softmax(1)  # (N, C)
    before, after = torch.special.entr(p.mean(0)).sum().item(), torch.special.entr(p).sum(1).mean().item()
    return round(1 - after / before, 4) if before > NOTHING else 1.0
