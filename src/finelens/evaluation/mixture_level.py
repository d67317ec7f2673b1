"""A level between two groups of scores that nobody has labelled: a power transform and two Gaussians (OpenXpert, arXiv 2504.14224)."""

from __future__ import annotations

import warnings

import numpy as np

# Scores below which two groups cannot be told, and gain per score of the Bayesian information criterion and distance of the means in standard
# deviations from which they are believed.
LEAST, GAIN, APART = 50, 0.05, 2.5
# Quantiles that the means of the two begin at; the likeliest end is taken.
STARTS = ((0.25, 0.75), (0.1, 0.9), (0.5, 0.98))
# Part of the spread that keeps every score positive, which the transform needs.
MARGIN = 1e-3


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
    from scipy.stats import boxcox
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    distance = scores.max() - scores + MARGIN * np.ptp(scores)
    x = boxcox(distance / distance.mean())[0]
    x = ((x - x.mean()) / x.std())[:, None]
    one = GaussianMixture(1, random_state=0).fit(x)
    starts = (GaussianMixture(2, means_init=np.quantile(x, ends)[:, None], reg_covar=1e-4, max_iter=300, tol=1e-5, random_state=0) for ends in STARTS)
    with warnings.catch_warnings():
        # A mixture that is still moving is only a little less likely than it could be.
        warnings.simplefilter("ignore", ConvergenceWarning)
        two = max((start.fit(x) for start in starts), key=lambda found: float(found.lower_bound_))
    means, variances = two.means_[:, 0], two.covariances_[:, 0, 0]
    far = int(means.argmax())
    # A wide group reaches round a narrow one: what lies on its near side is not far.
    lower = (two.predict(x) == far) & (x[:, 0] > means.min())
    gain, apart = (one.bic(x) - two.bic(x)) / len(x), np.ptp(means) / np.sqrt(variances.mean())
    if gain < GAIN or apart < APART or not lower.any() or lower.mean() > 0.5:
        return None
    end = scores[lower].max()
    above = scores[scores > end]
    return float((end + above.min()) / 2) if len(above) else None
