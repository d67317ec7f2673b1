"""Label-free measures of a finished run: what its verdict, its report and its estimate of confusions rest on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.core.options import from_mapping
from finelens.core.schemas import SCHEMA_VERSION
from finelens.errors import UserError
from finelens.evaluation.confusion import ConfusionPair, estimate_confusion, similar_pairs
from finelens.evaluation.diversity import diversity, evenly
from finelens.evaluation.weak_start import Start, start_of
from finelens.solvers.neighbours import top_neighbours
from finelens.storage.files import json_text, read_json, write_text

FORMAT = "finelens-signals"
PAIRS = 50
# Images whose features are held in double precision at a time.
CHUNK = 4096
# Characters of a content's hash that tell 50,000 files apart with certainty enough to call two of them copies.
ID_LENGTH = 16
MOST_NEIGHBOURS, NEIGHBOUR_CHUNK = 10, 2048


@dataclass(frozen=True)
class Signals:
    """Numbers of a run over its own images; shares lie in [0, 1], ``*_zero_shot`` are those of the unadapted model with templates.

    Attributes:
        images: Images with a prediction, N.
        classes: Classes, C.
        agreement: Share of images that keep their zero-shot class.
        largest: Share of the most predicted class.
        largest_zero_shot: Largest share with zero-shot.
        unused: Classes never predicted.
        unused_zero_shot: Classes that zero-shot never predicts.
        spread: Perplexity of the predicted classes over C: 1 when all are equally frequent.
        spread_zero_shot: Spread of the zero-shot classes.
        confidence: Mean probability of the predicted class.
        confidence_zero_shot: Mean probability of the zero-shot class.
        margin: Mean probability of the first class minus that of the second.
        kept: Share that keep their zero-shot class among the half of the images on which the unadapted model is surest.
        text_agreement: Share of images on which templates and descriptions name the same class, both unadapted; None without descriptions.
        templates_information: What the unadapted model knows of the classes with templates, see ``weak_start.Start``; None in runs
            of before.
        descriptions_information: What it knows of them with descriptions; None without descriptions.
        name_sense: How far class names stand out from made-up words, see ``name_sense.name_sense``; None where no text was encoded.
        further_encoders: Encoders of ``--extra`` that the method listens to.
        none_of_these: Share of images that probably belong to none of the classes; None in runs of before.
        directions: In how many directions the images vary, see ``diversity.Diversity``; None in runs of before, as are the next three.
        directions_by_text: The same of what the texts of their classes account for.
        directions_own: The same of what those do not.
        text_share: Share of the strength of the features that the texts account for.
    """

    images: int
    classes: int
    agreement: float
    largest: float
    largest_zero_shot: float
    unused: int
    unused_zero_shot: int
    spread: float
    spread_zero_shot: float
    confidence: float
    confidence_zero_shot: float
    margin: float
    kept: float
    text_agreement: float | None
    templates_information: float | None = None
    descriptions_information: float | None = None
    name_sense: float | None = None
    further_encoders: int = 0
    none_of_these: float | None = None
    directions: float | None = None
    directions_by_text: float | None = None
    directions_own: float | None = None
    text_share: float | None = None

    @property
    def start(self) -> Start | None:
        """What the run started from; None in runs of before."""
        if self.templates_information is None:
            return None
        return Start(self.images, self.templates_information, self.descriptions_information)

    @property
    def weak_start(self) -> bool:
        """Whether that hardly knew the classes; False in runs of before, which do not say."""
        return self.start is not None and self.start.weak


@dataclass(frozen=True)
class Measured:
    """All that a run keeps about itself beside its predictions.

    Attributes:
        signals: The numbers.
        confusion: Pairs of classes likely to be confused, likeliest first.
        similar: Pairs of classes whose texts are nearly the same, nearest first.
        ids: Identity by content of each predicted image, in the order of ``predictions.csv``.
        zero_shot_probability: Probability that the unadapted model gives its own class, same order.
        typicality: Cosine of an image's feature with the mean of the other images of its predicted class, same order; None for an only image.
        support: Mean probability that the nearest other images give to its predicted class, same order; see :func:`neighbour_support`.
    """

    signals: Signals
    confusion: tuple[ConfusionPair, ...]
    similar: tuple[ConfusionPair, ...]
    ids: tuple[str, ...] = ()
    zero_shot_probability: tuple[float, ...] = ()
    typicality: tuple[float | None, ...] = field(default=())
    support: tuple[float, ...] = ()


@torch.no_grad()
def measure(
    logits: Tensor,
    zero_shot: Tensor,
    described: Tensor | None,
    features: Tensor,
    heads: Tensor,
    ids: Sequence[str],
    order: Sequence[int],
    nearest: Tensor | None = None,
) -> Measured:
    """Measure a run on its own images.

    Args:
        logits: Of the method, (N, C), in store order.
        zero_shot: Of the unadapted model with templates, (N, C).
        described: Of the unadapted model with descriptions, (N, C); None without descriptions.
        features: Unit-norm features of the unadapted model, (N, E).
        heads: Unit-norm text prototypes, (C, E).
        ids: Sample ids, (N,).
        order: Store positions in the order of ``predictions.csv``.
        nearest: What :func:`nearest_images` found, if it was asked before.
    """
    probabilities, first = logits.float().softmax(1), zero_shot.float().softmax(1)
    labels = probabilities.argmax(1)
    typicality = class_typicality(features, labels, logits.shape[1])
    support = neighbour_support(features, probabilities, nearest)
    confidence = first.amax(1)
    some = evenly(len(features))
    varied = diversity(features[some], heads[labels[some].to(heads.device)])
    return Measured(
        signals=replace(
            signals_of(probabilities, first, described),
            directions=varied.all,
            directions_by_text=varied.by_text,
            directions_own=varied.own,
            text_share=varied.share,
        ),
        confusion=estimate_confusion(probabilities, PAIRS),
        similar=similar_pairs(heads, PAIRS),
        ids=tuple(content_of(ids[i]) for i in order),
        zero_shot_probability=tuple(round(confidence[i].item(), 4) for i in order),
        typicality=tuple(None if math.isnan(value := typicality[i].item()) else round(value, 4) for i in order),
        support=tuple(round(support[i].item(), 4) for i in order),
    )


def signals_of(probabilities: Tensor, zero_shot: Tensor, described: Tensor | None) -> Signals:
    """The numbers.

    Args:
        probabilities: Posteriors of the method, (N, C).
        zero_shot: Posteriors of the unadapted model with templates, (N, C).
        described: Its logits with descriptions, (N, C); None without descriptions.
    """
    n, c = probabilities.shape
    labels, first = probabilities.argmax(1), zero_shot.argmax(1)
    same = (labels == first).double()
    sure = zero_shot.amax(1)
    start = start_of(zero_shot, None if described is None else described.float().softmax(1))
    top = probabilities.topk(min(2, c)).values  # (N, 2)
    return Signals(
        images=n,
        classes=c,
        agreement=same.mean().item(),
        largest=_shares(labels, c).max().item(),
        largest_zero_shot=_shares(first, c).max().item(),
        unused=c - len(labels.unique()),
        unused_zero_shot=c - len(first.unique()),
        spread=spread(labels, c),
        spread_zero_shot=spread(first, c),
        confidence=top[:, 0].mean().item(),
        confidence_zero_shot=sure.mean().item(),
        margin=(top[:, 0] - (top[:, 1] if c > 1 else 0)).mean().item(),
        kept=same[sure.argsort(descending=True, stable=True)[: (n + 1) // 2]].mean().item(),
        text_agreement=None if described is None else (described.argmax(1) == first).double().mean().item(),
        templates_information=start.templates,
        descriptions_information=start.descriptions,
    )


def as_written(signals: Signals, labels: Tensor) -> Signals:
    """The numbers about the folder, where a person's answers stand in the place of the model's; all others stay those of the model alone.

    Args:
        signals: Of the model.
        labels: Classes of the images that have one, as they are written, (N',).
    """
    counts = torch.bincount(labels, minlength=signals.classes)
    return replace(signals, largest=int(counts.max()) / signals.images, unused=int((counts == 0).sum()))


def _shares(labels: Tensor, classes: int) -> Tensor:
    return torch.bincount(labels, minlength=classes).double() / len(labels)  # (C,)


def spread(labels: Tensor, classes: int) -> float:
    """Perplexity of the label histogram over C, in (0, 1]."""
    shares = _shares(labels, classes)
    return math.exp(torch.special.entr(shares).sum().item()) / classes


def class_typicality(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Cosine (N,) of each unit-norm feature (N, E) with the mean of the other images of its class; NaN for an only image."""
    sums = torch.zeros(classes, features.shape[1], dtype=torch.float64)  # (C, E)
    parts = list(zip(features.split(CHUNK), labels.split(CHUNK), strict=True))
    for x, own in parts:
        sums.index_add_(0, own, x.double())
    cosines = [(x.double() * F.normalize(sums[own] - x.double(), dim=1)).sum(1) for x, own in parts]
    alone = torch.bincount(labels, minlength=classes)[labels] < 2
    return torch.cat(cosines).masked_fill(alone, math.nan)


def nearest_images(features: Tensor, classes: int) -> Tensor:
    """Positions (N, K) of each image's nearest others; K is 0 for an only image.

    The neighbourhood is half of an even share of the images, at most ``MOST_NEIGHBOURS``: a larger one would reach into other classes.

    Args:
        features: Unit norm, (N, E). Their mean is taken out first: what all images share says nothing.
        classes: Classes, C.
    """
    n = len(features)
    count = max(1, min(MOST_NEIGHBOURS, n // (2 * classes), n - 1))
    if n < 2:
        return torch.zeros(n, 0, dtype=torch.long)
    centred = F.normalize(features.float() - features.float().mean(0), dim=1)
    return top_neighbours(centred, centred, count, chunk_size=NEIGHBOUR_CHUNK, same=True)[1]  # (N, K)


def neighbour_support(features: Tensor, probabilities: Tensor, nearest: Tensor | None = None) -> Tensor:
    """Mean probability (N,) that an image's nearest others give to its predicted class; 1 for an only image.

    Args:
        features: Unit norm, (N, E).
        probabilities: Posteriors (N, C).
        nearest: What :func:`nearest_images` found, if it was asked before.
    """
    n, c = probabilities.shape
    if n < 2:
        return torch.ones(n)
    nearest = nearest_images(features, c) if nearest is None else nearest
    labels = probabilities.argmax(1)
    total = torch.zeros(n, dtype=probabilities.dtype)
    for column in nearest.T:
        total += probabilities[column, labels]
    return total / nearest.shape[1]


def content_of(sample_id: str) -> str:
    """What a sample id says of the content alone, the same for every copy of it."""
    return sample_id.partition("-")[0][:ID_LENGTH]


def write_measured(path: Path, measured: Measured) -> None:
    """Write ``signals.json``, atomically."""
    write_text(path, json_text({"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(measured)}) + "\n")


def read_measured(path: Path) -> Measured:
    """Read what :func:`write_measured` wrote.

    Raises:
        UserError: Missing, damaged, or of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: the run is not finished (finelens resume), or an older finelens wrote it (run it again)")
    document = read_json(path)
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise UserError(f"{path}: not the signals of a finelens run; run it again")
    try:
        return Measured(
            signals=from_mapping(Signals, document["signals"], "signals"),
            confusion=_pairs(document["confusion"]),
            similar=_pairs(document["similar"]),
            **{name: tuple(document[name]) for name in ("ids", "zero_shot_probability", "typicality", "support")},
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); run it again") from error


def _pairs(values: Any) -> tuple[ConfusionPair, ...]:
    return tuple(ConfusionPair(**value) for value in values)
