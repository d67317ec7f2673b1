"""Whether a model knows its classes well enough to be trained on its own answers, judged without labels. Documentation: docs/guard.md."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from finelens.solvers.presence import information

# For each text half-way between the most information with which a method fell wholly below zero-shot, on the sets that defaults may come from,
# and the next, with which none did: docs/guard.md.
LEAST_TEMPLATES, LEAST_DESCRIPTIONS = 0.145, 0.13
# With fewer images the mean posterior says too little.
FEW_IMAGES = 50

HARDLY = "the starting model hardly knows these classes"
REMEDY = (
    "label a few photographs and adapt again with --hints (finelens review makes a sheet to label them on), or take --method auto, which chooses a "
    "method that trains nothing. Other class names or descriptions may help; --set training.guard=off trains all the same"
)


@dataclass(frozen=True)
class Start:
    """What the unadapted model knows of the classes, by its own account.

    Attributes:
        images: Images it was asked about, N.
        templates: :func:`information` of its answers with templates.
        descriptions: :func:`information` of its answers with descriptions; None without any.
    """

    images: int
    templates: float
    descriptions: float | None

    @property
    def weak(self) -> bool:
        """Whether it is too little to train on with one of the texts, since methods start from either; never said of a few images."""
        known = self.templates >= LEAST_TEMPLATES and (self.descriptions is None or self.descriptions >= LEAST_DESCRIPTIONS)
        return self.images >= FEW_IMAGES and not known

    @property
    def told(self) -> str:
        """The numbers in words, without an end."""
        told = f"{self.templates:.2%}"
        if self.descriptions is not None:
            told = f"{told} with class names (templates), {self.descriptions:.2%} with descriptions"
        return f"by its own account one photograph brings it so far from knowing nothing to being certain of the class: {told}"

    @property
    def account(self) -> str:
        """The same with what a method that trains needs."""
        needed = f"{LEAST_TEMPLATES:.2%}"
        if self.descriptions is not None:
            needed = f"{needed} and {LEAST_DESCRIPTIONS:.2%}"
        return f"{self.told}; training needs {needed}"


def start_of(templates: Tensor, descriptions: Tensor | None) -> Start:
    """Judge a start.

    Args:
        templates: Posteriors (N, C) of the unadapted model with templates.
        descriptions: Its posteriors (N, C) with descriptions; None without any.
    """
    return Start(len(templates), information(templates), None if descriptions is None else information(descriptions))
