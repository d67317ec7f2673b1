"""Whether class names say more about the photographs than words that mean nothing. Ours; measured in docs/report.md."""

from __future__ import annotations

import torch
from torch import Tensor

from finelens.solvers.presence import information

# Names asked about at a time, draws of as many made-up words, draws of names where there are more of them, and most images that are looked at.
AT_A_TIME, DRAWS, NAME_DRAWS, MOST_IMAGES = 15, 40, 10, 2000
# Standard deviations over draws of made-up words from which names are believed to say something, and classes from which that can be told: of two
# classes even good names do not always stand out.
LEAST_SENSE, LEAST_CLASSES = 2.5, 3
# Below it names are no better than made-up words; between the two a short list of right names may lie.
NO_SENSE = 1.0

NONSENSE = "the class names say no more about these photographs than made-up words do"


@torch.no_grad()
def name_sense(features: Tensor, names: Tensor, made_up: Tensor, scale: float) -> float:
    """How far names stand out from made-up words, in standard deviations of draws of as many of those.

    Two measures are taken of each draw, and the one that stands out further counts: the mean over images of the largest cosine, and
    :func:`~finelens.solvers.presence.information` of the posteriors. Rounded to two digits, so that the last bits of a sum decide nothing.

    Args:
        features: Unit norm, of the images, (N, E).
        names: Unit norm, (K, E).
        made_up: Unit norm, (M, E).
        scale: Multiplier of cosines.
    """
    rows = torch.linspace(0, len(features) - 1, min(len(features), MOST_IMAGES)).round().long()
    images, generator = features[rows].float(), torch.Generator().manual_seed(0)
    cosines, nothing = images @ names.float().T, images @ made_up.float().T  # (n, K), (n, M)
    count = min(AT_A_TIME, cosines.shape[1], nothing.shape[1])
    draws = [_measures(_some(nothing, count, generator), scale) for _ in range(DRAWS)]
    own = [_measures(_some(cosines, count, generator), scale) for _ in range(NAME_DRAWS if cosines.shape[1] > count else 1)]
    without, found = torch.tensor(draws, dtype=torch.float64), torch.tensor(own, dtype=torch.float64).mean(0)  # (DRAWS, 2), (2,)
    return round(float(((found - without.mean(0)) / without.std(0).clamp_min(1e-6)).max()), 2)


def _some(cosines: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return cosines if count == cosines.shape[1] else cosines[:, torch.randperm(cosines.shape[1], generator=generator)[:count]]


def _measures(cosines: Tensor, scale: float) -> tuple[float, float]:
    return cosines.amax(1).mean().item(), information((scale * cosines).softmax(1))
