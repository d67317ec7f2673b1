"""Orders of asking that others have published, over centred unit features: what ``benchmarks/looking.py`` sets ours against."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans


def k_centre(x: np.ndarray, n: int) -> np.ndarray:
    """Greedy k-centre (Sener and Savarese, ICLR 2018), begun at the image nearest to the mean of all.

    Args:
        x: Features, (N, D).
        n: Images to choose.
    """
    chosen = [int(np.linalg.norm(x - x.mean(0), axis=1).argmin())]
    distance = _distance(x, chosen[0])
    while len(chosen) < n:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, _distance(x, chosen[-1]))
    return np.array(chosen)


def typiclust(x: np.ndarray, n: int, neighbours: int = 20) -> np.ndarray:
    """TypiClust (Hacohen, Dekel and Weinshall, ICML 2022): k-means into n clusters, largest first; in each the image whose mean distance to its
    nearest neighbours in the cluster is smallest.

    Args:
        x: Features, (N, D).
        n: Images to choose.
        neighbours: At most, as there.
    """
    label = KMeans(n, n_init=1, random_state=0).fit_predict(x)
    chosen = []
    for cluster in np.argsort(-np.bincount(label, minlength=n), kind="stable"):
        own = np.flatnonzero(label == cluster)
        near = np.sort(_distances(x[own]), axis=1)[:, 1 : neighbours + 1]
        chosen.append(int(own[near.mean(1).argmin()]) if len(own) > 1 else int(own[0]))
    return np.array(chosen)


def probcover(x: np.ndarray, n: int, classes: int, purity: float = 0.95) -> np.ndarray:
    """ProbCover (Yehuda et al., NeurIPS 2022): greedily the image whose ball covers most images that no ball covers yet. The radius is the largest at
    which the share of balls that lie within one cluster of k-means (``classes`` clusters) is at least ``purity``, as there.

    Args:
        x: Features, (N, D).
        n: Images to choose.
        classes: C.
        purity: Share of pure balls.
    """
    distance, label = _distances(x), KMeans(classes, n_init=1, random_state=0).fit_predict(x)
    # A ball is pure up to the nearest image of another cluster.
    limit = np.where(label[:, None] == label, np.inf, distance).min(1)
    covers = distance < np.quantile(limit, 1 - purity)
    chosen: list[int] = []
    while len(chosen) < n:
        gain = covers.sum(1)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        covers = covers & ~covers[chosen[-1]]
    return np.array(chosen)


def _distance(x: np.ndarray, i: int) -> np.ndarray:
    found: np.ndarray = np.linalg.norm(x - x[i], axis=1)
    return found


def _distances(x: np.ndarray) -> np.ndarray:
    square = (x**2).sum(1)
    found: np.ndarray = np.sqrt(np.maximum(square[:, None] + square - 2 * x @ x.T, 0))
    return found
