"""Where several anchors per class start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def kmeans_anchors(sentences: Sequence[Tensor], count: int, seed: int) -> Tensor:
    """Unit-norm centres of a k-means of each class's description features.

    A class with fewer distinct descriptions than ``count`` repeats its centres, the one with most descriptions first.

    Args:
        sentences: One (T_c, E) tensor per class, T_c at least 1.
        count: Anchors per class, J.
        seed: Seed of the k-means starts.

    Returns:
        (C, J, E), in the type and on the device of the features.
    """
    return torch.stack([_centres(F.normalize(own, dim=-1), count, seed) for own in sentences])  # (C, J, E)


def _centres(features: Tensor, count: int, seed: int) -> Tensor:
    # Imported late: one anchor per class, the default, needs none of it.
    from sklearn.cluster import KMeans

    distinct = len(features.unique(dim=0))
    fitted = KMeans(min(count, distinct), n_init=10, random_state=seed % 2**32).fit(features.detach().double().cpu().numpy())
    sizes = torch.bincount(torch.from_numpy(fitted.labels_).long())
    largest_first = torch.from_numpy(fitted.cluster_centers_)[sizes.argsort(descending=True, stable=True)]  # (k, E)
    centres = largest_first[torch.arange(count) % len(largest_first)]  # (J, E)
    return F.normalize(centres, dim=-1).to(features)
