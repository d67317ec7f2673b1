"""A level between two groups of scores that nobody has labelled: a power transform and two Gaussians (OpenXpert, arXiv 2504.14224).

In plain numpy: what scipy.stats and scikit-learn bring along takes longer than a run on features. Tests hold it against both.
"""

from __future__ import annotations

import math

import numpy as np

# Scores below which two groups cannot be told, and gain per score of the Bayesian information criterion and distance of the means in standard
# deviations from which they are believed.
LEAST, GAIN, APART = 50, 0.05, 2.5
# Quantiles that the means of the two begin at; the likeliest end is taken.
STARTS = ((0.25, 0.75), (0.1, 0.9), (0.5, 0.98))
# Part of the spread that keeps every score positive, which the transform needs.
MARGIN = 1e-3
# Powers that are tried; rounds of expectation and maximisation; the gain per score that ends them; the least variance.
POWERS, ROUNDS, ENOUGH, FLOOR = (-3.0, 5.0), 300, 1e-5, 1e-4


def mixture_level(scores: np.ndarray) -> float | None:
    """The score at which a lower, smaller group ends.

    Box-Cox brings the distances from the highest score near a Gaussian or two; a mixture of two is believed where it says enough more than one, its
    means lie apart, and the lower group holds at most half: most photographs of a folder are taken to show its classes.

    Args:
        scores: (N,), higher for what belongs.

    Returns:
        The level, half-way between the highest score of the lower group and the next; None where there are no two groups.
    """
    if len(scores) < LEAST or np.ptp(scores) <= 0:
        return None
    distance = scores.max() - scores + MARGIN * np.ptp(scores)
    x = box_cox(distance / distance.mean())
    x = (x - x.mean()) / x.std()
    weights, means, variances, likelihood = max((two_gaussians(x, np.quantile(x, ends)) for ends in STARTS), key=lambda found: found[3])
    far = int(means.argmax())
    # A wide group reaches round a narrow one: what lies on its near side is not far.
    lower = (_log_parts(x, weights, means, variances).argmax(1) == far) & (x > means.min())
    # Five numbers describe two Gaussians and two describe one, whose log-likelihood is that of a standard normal.
    one = -0.5 * (math.log(2 * math.pi) + 1)
    gain = 2 * (likelihood - one) - 3 * math.log(len(x)) / len(x)
    apart = np.ptp(means) / math.sqrt(variances.mean())
    if gain < GAIN or apart < APART or not lower.any() or lower.mean() > 0.5:
        return None
    end = scores[lower].max()
    above = scores[scores > end]
    return float((end + above.min()) / 2) if len(above) else None


def box_cox(x: np.ndarray) -> np.ndarray:
    """Positive numbers (N,) raised to the power that makes them likeliest normal (Box and Cox, 1964), less one and over that power; 0 is the log."""
    logs = np.log(x)

    def transformed(power: float) -> np.ndarray:
        return logs if abs(power) < 1e-9 else np.asarray(np.expm1(power * logs) / power)

    def likelihood(power: float) -> float:
        return (power - 1) * float(logs.mean()) - 0.5 * math.log(max(float(transformed(power).var()), 1e-300))

    low, high = POWERS
    while high - low > 1e-6:
        # The golden section of an interval in which there is one summit.
        step = (high - low) * (math.sqrt(5) - 1) / 2
        left, right = high - step, low + step
        low, high = (left, high) if likelihood(left) < likelihood(right) else (low, right)
    return transformed((low + high) / 2)


def two_gaussians(x: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Weights, means and variances, each (2,), of the mixture that expectation and maximisation end at, and its mean log-likelihood.

    Args:
        x: Numbers, (N,).
        means: Where the two begin, (2,).
    """
    weights, variances, before = np.full(2, 0.5), np.full(2, x.var()), -math.inf
    for _ in range(ROUNDS):
        parts = _log_parts(x, weights, means, variances)  # (N, 2)
        top = parts.max(1)
        total = top + np.log(np.exp(parts - top[:, None]).sum(1))
        likelihood = float(total.mean())
        if likelihood - before < ENOUGH:
            break
        before = likelihood
        share = np.exp(parts - total[:, None])
        mass = share.sum(0) + 1e-12
        weights, means = mass / mass.sum(), share.T @ x / mass
        variances = (share * (x[:, None] - means) ** 2).sum(0) / mass + FLOOR
    return weights, means, variances, likelihood


def _log_parts(x: np.ndarray, weights: np.ndarray, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Logarithm of each Gaussian's part of the density, (N, 2)."""
    return np.asarray(np.log(weights) - 0.5 * (np.log(2 * np.pi * variances) + (x[:, None] - means) ** 2 / variances))
