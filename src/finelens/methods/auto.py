"""The rule of ``--method auto``: a method from what can be seen without labels. Documentation: docs/auto.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finelens.errors import UserError

AUTO = "auto"
FAMILY = "choice"
SUMMARY = "Chooses one of the others by what can be seen without labels, and says why."

# What the inputs are read with until the choice is made: it takes photographs, features and hints, and needs none of them in particular.
PROVISIONAL = "stata"
# What takes a time budget without ``auto``, and what it becomes where the budget is used.
SOLVED, TAUGHT = "consensus", "consensus-tuned"

# Below, the statistics of a mixture rest on too little; above, training has something to learn from.
FEW_IMAGES, MANY_IMAGES = 50, 1000
# Part of the budget that epochs may take; the rest is for looking at the images and for what the estimate misses.
FOR_EPOCHS = 0.8


@dataclass(frozen=True)
class Facts:
    """What is known of a run before a method is chosen.

    Attributes:
        images: Readable images.
        classes: Class names given.
        named: Classes that zero-shot predictions name at least once.
        photographs: Whether pixels are there; False for a feature file.
        descriptions: Whether descriptions were given.
        hints: Images that the user gave a class, or the answer "none of these".
        hinted: Classes with at least one of them.
        budget: Minutes that training may take; None where the user said nothing.
        weak_start: The account of an unadapted model that knows too little to be trained on its own answers (``evaluation.weak_start``), else None.
        training: Minutes that ``microclip`` would train, estimated; None where it was not asked for.
    """

    images: int
    classes: int
    named: int
    photographs: bool
    descriptions: bool
    hints: int = 0
    hinted: int = 0
    budget: float | None = None
    weak_start: str | None = None
    training: float | None = None

    @property
    def against_training(self) -> str | None:
        """Why training does not come into question, whatever it costs; None if it does."""
        if self.budget is None:
            return "no --minutes were given"
        if not self.photographs:
            return "features cannot be trained on"
        if self.images < MANY_IMAGES:
            return f"{self.images} photographs are fewer than {MANY_IMAGES}"
        if 2 * self.named < self.classes:
            return f"zero-shot names only {self.named} of {self.classes} classes"
        return self.weak_start


def choose_method(facts: Facts) -> tuple[str, str]:
    """Name of the method and the reason for it, one line.

    How many classes are named counts against training only. That all classes are present is never concluded: neither predictions nor the estimated
    prior tell a class that is absent from one that is not recognised.
    """
    if facts.hinted == facts.classes:
        return "gda", f"all {facts.classes} classes have hinted images"
    if facts.hints:
        return "stata", f"hints cover {facts.hinted} of {facts.classes} classes; it keeps them fixed and uses the other images too"
    if facts.images < FEW_IMAGES:
        few = f"{facts.images} images, fewer than {FEW_IMAGES}, are too few to adapt to"
        return ("cupl", f"{few}; descriptions were given") if facts.descriptions else ("zero-shot", f"{few}; no descriptions were given")
    against = facts.against_training
    if against is None and facts.training is not None and facts.budget is not None:
        time = f"about {facts.training:.0f} of {facts.budget:g} minutes"
        if facts.training <= facts.budget:
            return "microclip", f"{facts.images} photographs, zero-shot names {facts.named} of {facts.classes} classes, training takes {time}"
        against = f"training would take {time}"
    return "tip-adapter", f"it fell least below zero-shot where classes were absent or unequal; microclip was left out: {against}"


def lessons_within(budget: float, seconds: float, most: int) -> int:
    """How many lessons the budget is enough for.

    Args:
        budget: Seconds there are.
        seconds: Of one lesson.
        most: Lessons that are wanted.
    """
    return min(most, int(budget / (60 * minutes_for(seconds))))


def minutes_for(seconds: float) -> float:
    """The least time budget, in minutes, that is enough for a lesson of so many seconds."""
    return seconds / FOR_EPOCHS / 60


def starting_method(method: str, options: Mapping[str, Mapping[str, Any]], minutes: float | None) -> str:
    """The method to read the inputs with: the user's, what it is with a time budget, or a provisional one for ``auto``.

    Raises:
        UserError: Options that belong to a method beside ``auto``, or a time budget beside a method.
    """
    if minutes is not None:
        if method not in (AUTO, SOLVED):
            raise UserError(f"--minutes has an effect with --method {SOLVED} (the default) or auto only, and the method is {method}; leave it out")
        if not 0 < minutes < math.inf:
            raise UserError(f"--minutes must be above 0 and finite, got {minutes:g}")
        if method == SOLVED and "epochs" in options.get("training", {}):
            raise UserError(f"--minutes decides how many epochs there are; leave training.epochs out, or give it with --method {TAUGHT}")
    if method != AUTO:
        return method if minutes is None else TAUGHT
    own = [f"method.{key}" for key in options.get("method", {})] + [f"training.{key}" for key in options.get("training", {}) if key != "precision"]
    if own:
        raise UserError(f"{own[0]} is an option of one method, and --method auto has yet to choose one; name the --method or leave the option out")
    return PROVISIONAL
