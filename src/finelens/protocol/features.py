"""Features of the unlabelled images, and what a person gave with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from finelens.protocol.backbone import Preprocess
from finelens.protocol.views import Batch, ViewPlan


@runtime_checkable
class Rows(Protocol):
    """Features of very many images, read some at a time and as often as wanted; memory does not hold them all."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each feature space, which lie side by side; the first is the one of the prototypes."""
        ...

    def __len__(self) -> int:
        """How many images there are, N."""
        ...

    def parts(self, size: int) -> Iterator[Tensor]:
        """All rows in their order, float32, ``size`` at a time, the last fewer: (n, D_1 + ... + D_V)."""
        ...

    def at(self, positions: Tensor) -> Tensor:
        """Some rows, (n, D_1 + ... + D_V), float32."""
        ...


class FeatureRows(Tensor):
    """Rows (B, E + W) of ``global_`` and ``cls`` side by side, as the unadapted tower gave them: what ``Task.predict_logits`` and
    ``Engine.encode_frozen`` take in the place of pixels. A task that takes features of further encoders finds them behind these columns.
    """


class PrefixRows(Tensor):
    """Activations (B, ...) before the last blocks of the tower, see :meth:`Backbone.encode_prefix`: what the engine takes in the place of views."""


@dataclass(frozen=True)
class Hints:
    """Classes that a person gave for a few of the target images, on purpose: the support set of few-shot methods, fixed pseudo-labels of the others.

    Attributes:
        index: Positions in the store, ascending, (K,), int64.
        label: Class of each, (K,), int64; -1 where the person said "none of these classes".
        look: Number of the look at which each was given, (K,), int64: photographs that were named as one group share it. None where each was given
            for itself.
    """

    index: Tensor
    label: Tensor
    look: Tensor | None = None

    def some(self, chosen: Tensor, index: Tensor) -> Hints:
        """Those of a mask (K,), at other positions (K',)."""
        return Hints(index, self.label[chosen], None if self.look is None else self.look[chosen])


@dataclass(frozen=True, eq=False)
class Tested:
    """Hints of a class as tests of a fit, each of a model that had not learnt it; in the order of the hints.

    Attributes:
        before: Class without any hint, (K,), int64.
        guesses: Class by a model that had learnt the other hints, (K,), int64.
        speaks_for: Images of the fit that are nearest to each, itself among them, (K,), float64.
        changed: Share of these, itself left out, to which that model gives another class than the one that has learnt all hints, (K,), float64.
    """

    before: Tensor
    guesses: Tensor
    speaks_for: Tensor
    changed: Tensor


@dataclass(frozen=True, eq=False)
class Support:
    """Images from outside the target set, with their classes.

    Attributes:
        features: (K, E).
        labels: Class of each, (K,), int64.
        captions: Text features of what each image shows, (K, E); None without.
    """

    features: Tensor
    labels: Tensor
    captions: Tensor | None = None


@dataclass(frozen=True)
class TargetFeatures:
    """One no-gradient pass over the unlabelled images with the unadapted backbone, centre view.

    Attributes:
        global_: (N, E) unit norm, float32, in store order.
        cls: (N, W) float32.
        hints: What the user gave with ``--hints``; None in a run without.
        views: Gives the centre views of the same images in another tower's geometry, uint8 batches (B, 3, S, S) in store order.
        first_views: Gives the views that the first epoch has of the same images, in store order.
        support: What the user gave with ``method.support``; None in a run without.
        extra: Features of further encoders, (N, D_v) each; none in a run without ``--extra``.
        rows: ``global_`` of all images of a run of so many that the others here are of a part, see ``feature_store.sampled``; else None.
        cls_rows: ``cls`` of all of them then.
        places: Where among all of them these images are then, (N,).
        extra_rows: ``extra`` of all of them then.
    """

    global_: Tensor
    cls: Tensor
    hints: Hints | None = None
    views: Callable[[Preprocess], Iterator[Tensor]] | None = None
    first_views: Callable[[ViewPlan], Iterator[Batch]] | None = None
    support: Support | None = None
    extra: tuple[Tensor, ...] = ()
    rows: Rows | None = None
    cls_rows: Rows | None = None
    places: Tensor | None = None
    extra_rows: tuple[Rows, ...] = ()
