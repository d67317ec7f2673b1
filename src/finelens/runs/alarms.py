"""What can go wrong quietly while a run adapts: each is found, named, said and logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from finelens.classes.heads import same_vectors
from finelens.classes.text_files import listing, quote
from finelens.errors import UserError
from finelens.evaluation.collapse import pseudo_label_warning
from finelens.evaluation.none_of_these import complaint, probably_none, remark
from finelens.evaluation.weak_start import HARDLY
from finelens.feature_store.prototypes import look_turned

if TYPE_CHECKING:
    from finelens.classes.heads import ClassHeads
    from finelens.core.console import Console
    from finelens.engine.engine import Engine
    from finelens.training.loop import Hooks

# Unit-norm features have norm 1; what cannot be normalised keeps 0.
MIN_NORM = 0.5


def with_alarms(hooks: Hooks, engine: Engine, zero_shot: Tensor, class_names: Sequence[str], console: Console) -> Hooks:
    """The hooks with a collapse alarm, and an engine that says when it goes on with less memory.

    Args:
        hooks: Hooks of the run.
        engine: Runs the backbone.
        zero_shot: Logits of the unadapted model on the target images, (N, C).
        class_names: C names.
        console: What to say.
    """
    before = torch.bincount(zero_shot.argmax(1), minlength=len(class_names)).tolist()

    def say(line: str) -> None:
        console.warn(line)
        if hooks.run is not None:
            hooks.run.log("warning", message=line)

    def alarm(counts: Sequence[int]) -> str | None:
        warning = pseudo_label_warning(counts, before, class_names)
        if warning is not None:
            console.warn(warning)
        return warning

    engine.micro.say = say
    return replace(hooks, alarm=alarm, zero_shot=zero_shot.argmax(1))


def say_none(doubt: ArrayLike, console: Console, *, hardly: bool = False) -> str | None:
    """Say how many photographs probably belong to none of the classes; where they are many, as a warning, which is returned.

    Args:
        doubt: Of ``evaluation.none_of_these``, (N,).
        console: What to say.
        hardly: Whether the starting model hardly knows the classes: then it finds strangers everywhere, and nobody is warned of them.
    """
    values = np.asarray(doubt)
    count = int(probably_none(values).sum())
    if hardly:
        if count:
            console.say(f"{remark(count, len(values))}; that says little, since {HARDLY}")
        return None
    warning = complaint(count, len(values))
    if warning is not None:
        console.warn(warning)
    elif count:
        console.say(remark(count, len(values)))
    return warning


def check_image_features(features: Tensor, console: Console) -> None:
    """Refuse features (N, E) that are not finite, and warn of features without a direction.

    Raises:
        UserError: NaN or infinity, which every method would spread over all images.
    """
    bad = int((~torch.isfinite(features).all(1)).sum())
    if bad:
        raise UserError(
            f"the features of {bad} of {len(features)} images are not finite; use --set training.precision=float32, or another --backbone"
        )
    lost = int((features.norm(dim=1) < MIN_NORM).sum())
    if lost:
        console.warn(f"the features of {lost} of {len(features)} images are zero: the model sees nothing in them and all classes score the same")


def check_prototypes(head: Tensor, features: Tensor, console: Console) -> None:
    """Warn of prototypes (C, D) that look transposed beside features (N, D)."""
    doubt = look_turned(head, features)
    if doubt is not None:
        console.warn(doubt)


def check_text_features(heads: ClassHeads, class_names: Sequence[str], console: Console) -> None:
    """Refuse text heads that are not finite or have a class without a direction, which no image could ever be given; warn of equal ones.

    Raises:
        UserError: There is such a class; the message names the first.
    """
    for head in (heads.templates, heads.descriptions, heads.weighted):
        lost = [quote(name) for name, norm in zip(class_names, head.norm(dim=1).tolist(), strict=True) if not norm >= MIN_NORM]
        if lost:
            raise UserError(f"the text features of class {listing(lost)} are zero or not finite; change the names or descriptions, or the --backbone")
    groups = same_vectors(heads.descriptions)
    if groups:
        shown = [" and ".join(quote(class_names[c]) for c in group) for group in groups]
        console.warn(f"classes with the same vector, of which only the first can be told from the others: {listing(shown)}; write them differently")
