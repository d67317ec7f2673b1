"""Whether an exported file or folder answers as the run does, asked of itself alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from finelens.core.console import Console
from finelens.errors import UserError
from finelens.images.discover import ImageFile, visible_files
from finelens.images.store import load_images
from finelens.images.views import centre_view
from finelens.runs.classifier import Classifier
from finelens.runs.folder import RunFolder

CHECKED = 64
# Of logits, between two float32 programs of the same model.
TOLERANCE = 1e-2
# Share of the classes that smaller weights, or another resize, must leave as they are; how many they did is printed and written down.
LEAST_EQUAL = 0.5
# A short side that no photograph has.
_WHOLE = 1 << 20
# Logits (B, C) of uint8 views (B, 3, S, S), one tensor for each image tower.
Runner = Callable[..., Tensor]


@dataclass(frozen=True)
class Difference:
    """How far an export is from the run.

    Attributes:
        images: Views that both were asked about.
        largest: Largest difference of a logit.
        equal: Views with the same class.
        files: The same of whole photographs, which the export resizes and crops itself; None where it does not.
    """

    images: int
    largest: float
    equal: int
    files: Difference | None = None


@torch.no_grad()
def compare(ours: Runner, theirs: Runner, *views: Tensor) -> Difference:
    """A batch of one and batches of sixteen, so that a fixed batch shows; views (N, 3, S, S) for each image tower."""
    towers = [[part for part in (own[:1], *own[1:].split(16)) if len(part)] for own in views]
    parts = list(zip(*towers, strict=True))
    return difference(torch.cat([ours(*part) for part in parts]), torch.cat([theirs(*part) for part in parts]))


def difference(ours: Tensor, theirs: Tensor) -> Difference:
    """Of logits (n, C)."""
    return Difference(len(ours), float((theirs - ours).abs().max()), int((theirs.argmax(1) == ours.argmax(1)).sum()))


def refuse(found: Difference, *, exact: bool) -> None:
    """Raise where the export is not the run's classifier. NaN is never near.

    Args:
        found: The difference.
        exact: Whether logits must agree, not only most classes.

    Raises:
        UserError: It is another classifier.
    """
    near = found.largest <= TOLERANCE if exact else found.equal >= LEAST_EQUAL * found.images
    if not (near and math.isfinite(found.largest)):
        raise UserError(
            f"the exported file answers otherwise than the run (logits by {found.largest:.2g}, "
            f"{found.images - found.equal} of {found.images} classes): nothing is kept"
        )


def photographs(run: str | Path) -> list[ImageFile]:
    """Some of the run's photographs; none where they are not there any more."""
    photos = Path(RunFolder.open(run, lock=False).config.photos)
    return visible_files(photos)[:CHECKED] if photos.is_dir() else []


def views_of(files: list[ImageFile], classifier: Classifier, console: Console) -> tuple[Tensor, ...]:
    """Centre views (n, 3, S, S) of photographs for each image tower; of noise where there are none."""
    store = load_images(files, classifier.limits).store if files else ()
    if len(store):
        return tuple(torch.stack([centre_view(store[i], own) for i in range(len(store))]) for own in classifier.preprocesses)
    console.say("the run's photographs are not where they were: the answers to noise are compared")
    generator = torch.Generator().manual_seed(0)
    shapes = ((CHECKED, 3, own.image_size, own.image_size) for own in classifier.preprocesses)
    return tuple(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for shape in shapes)


@torch.no_grad()
def compare_files(classifier: Classifier, of_image: Callable[[Image.Image], Tensor], files: list[ImageFile]) -> Difference | None:
    """Whole photographs, upright and in RGB, against the run's own resize and crop; None where not one can be read.

    Args:
        classifier: The run.
        of_image: Logits (C,) of a photograph.
        files: The photographs.
    """
    ours, theirs = [], []
    for file in files:
        # Read as the run reads them, of whatever format they are: what is compared begins behind that.
        loaded, whole = load_images([file], classifier.limits), load_images([file], replace(classifier.limits, short_side=_WHOLE))
        if not (len(loaded.store) and len(whole.store)):
            continue
        views = [centre_view(loaded.store[0], own)[None] for own in classifier.preprocesses]
        ours.append(classifier(*views)[0].log_softmax(0))
        image = Image.fromarray(whole.store[0].permute(1, 2, 0).numpy())  # (H, W, 3)
        theirs.append(of_image(image).log_softmax(0))
    return difference(torch.stack(ours), torch.stack(theirs)) if ours else None
