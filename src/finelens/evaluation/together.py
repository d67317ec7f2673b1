"""Photographs that belong together: near-copies among them, and one answer for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Cosine of unit-norm features from which two photographs of one group are near-copies; see docs/together.md for where it comes from.
NEAR = 0.95


def members(groups: Sequence[str]) -> list[np.ndarray]:
    """Positions of each group's images, in the order in which groups first occur."""
    found: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        found.setdefault(group, []).append(i)
    return [np.array(own) for own in found.values()]


def near_copies(features: np.ndarray, groups: Sequence[str], least: float = NEAR) -> np.ndarray:
    """For each image the first of its group that it is a near-copy of; itself for one that is like none before it.

    Args:
        features: Unit norm, (N, E).
        groups: Name of each image's group, N.
        least: Cosine.

    Returns:
        Positions (N,). What they name is no near-copy itself.
    """
    first = np.arange(len(groups))
    for own in members(groups):
        kept: list[int] = []
        for i in own:
            like = features[kept] @ features[i] if kept else np.zeros(0)
            if len(like) and like.max() >= least:
                first[i] = kept[int(like.argmax())]
            else:
                kept.append(int(i))
    return first


def group_probabilities(probabilities: np.ndarray, groups: Sequence[str], copies: np.ndarray) -> np.ndarray:
    """One answer for each group: the mean of its images' probabilities, near-copies counted once.

    Args:
        probabilities: (N, C).
        groups: Name of each image's group, N.
        copies: Of :func:`near_copies`, (N,).

    Returns:
        (N, C); rows of one group are equal.
    """
    weight = 1.0 / np.bincount(copies, minlength=len(copies))[copies]  # (N,)
    out = np.empty_like(probabilities, dtype=np.float64)
    for own in members(groups):
        out[own] = np.average(probabilities[own], axis=0, weights=weight[own])
    return out
