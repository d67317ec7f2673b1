"""Class masses of more images than memory holds, while they are sought: steps go over a sample, whose masses are brought to those of all images.

The masses of the sample are multiplied, class by class, by the ratio of both that was last seen in a pass over all; the sample only says how they
change. So few passes do for many steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finelens.solvers.known import Known
from finelens.solvers.prior import next_prior
from finelens.solvers.rows import FitRows, Score, mass_of
from finelens.solvers.sinkhorn import Prior, balance, given_prior, left_for_free, plan_mass

# Between these a class's mass over all images may lie, as a multiple of what the sample says.
LEAST, MOST = 0.1, 10.0
TINY = 1e-12
# Passes for logits that stay as they are.
LOOKS = 3


class SampledMass:
    """Mean posteriors of the images without a hint.

    Args:
        rows: The images.
        chunk_size: Images in work at a time.

    Attributes:
        positions: Those of the sample.
        x: Its rows.
        ratio: What brings its masses to those of all, (C,), float64; None before a pass has told.
    """

    def __init__(self, rows: FitRows, chunk_size: int) -> None:
        positions = rows.sampled()
        self.positions = positions[rows.free(positions)]
        self.rows, self.chunk_size, self.x = rows, chunk_size, rows.at(self.positions)
        self.ratio: Tensor | None = None

    def of(self, logits: Tensor, potentials: Tensor) -> Tensor:
        """Masses (C,), float64, mean over images, at logits (S, C) of the sample and potentials (C,)."""
        mass = plan_mass(logits, potentials, self.chunk_size)
        return mass if self.ratio is None else mass * self.ratio

    def look(self, score: Score, potentials: Tensor) -> None:
        """One pass for the ratio at these potentials."""
        added = potentials.float()
        self.take(score, potentials, mass_of(self.rows, lambda at, x: score(at, x).add_(added), len(potentials)))

    def take(self, score: Score, potentials: Tensor, mass: Tensor) -> None:
        """The ratio where a pass that was made for something else has told the sums of the posteriors of all images without a hint, (C,)."""
        of_sample = plan_mass(score(self.positions, self.x), potentials, self.chunk_size)
        free = max(1, len(self.rows) - len(self.rows.known))
        self.ratio = ((mass / free + TINY) / (of_sample + TINY)).clamp(LEAST, MOST)


class SampledBalance(SampledMass):
    """Sinkhorn's algorithm: class potentials whose posteriors have given masses over all images.

    Hinted images are fixed parts of the plan, as they are for :func:`~finelens.solvers.sinkhorn.balance`.

    Args:
        rows: The images.
        prior: Class masses (C,), float64.
        steps: Most Sinkhorn steps at a time.
        chunk_size: Images in work at a time.
    """

    def __init__(self, rows: FitRows, prior: Tensor, *, steps: int, chunk_size: int) -> None:
        super().__init__(rows, chunk_size)
        self._steps, self._target = steps, left_for_free(len(rows), prior, rows.known)

    def potentials(self, score: Score, start: Tensor, tol: float = 1e-3) -> Tensor:
        """Potentials (C,), float64, mean 0.

        Args:
            score: Logits of images without potentials.
            start: Potentials to start from, (C,).
            tol: Stop when every class's mass is this near to its prior, as a share of it.
        """
        nothing = Known(*torch.zeros(2, 0, dtype=torch.int64))
        logits, steps = score(self.positions, self.x), self._steps
        return balance(logits, self._target, nothing, max_iter=steps, tol=tol, chunk_size=self.chunk_size, start=start, ratio=self.ratio)[0]


def balanced(rows: FitRows, score: Score, prior: Tensor, *, steps: int, tol: float, chunk_size: int) -> Tensor:
    """Potentials (C,), float64, of logits that stay as they are, by a few passes.

    Args:
        rows: The images.
        score: Logits of images.
        prior: Class masses (C,), float64.
        steps: Most Sinkhorn steps at a time.
        tol: See :meth:`SampledBalance.potentials`.
        chunk_size: Images in work at a time.
    """
    found = SampledBalance(rows, prior, steps=steps, chunk_size=chunk_size)
    potentials = found.potentials(score, torch.zeros_like(prior), tol)
    for _ in range(LOOKS):
        found.look(score, potentials)
        potentials = found.potentials(score, potentials, tol)
    return potentials


def prior_of(rows: FitRows, wanted: Prior, score: Score, classes: int, chunk_size: int) -> Tensor:
    """What :func:`~finelens.solvers.sinkhorn.class_prior` gives, by a few passes where it is estimated.

    Args:
        rows: The images.
        wanted: See there.
        score: Logits of the text.
        classes: C.
        chunk_size: Images in work at a time.

    Raises:
        UserError: The numbers are no prior of these classes.
    """
    uniform = torch.full((classes,), 1 / classes, dtype=torch.float64)
    if not isinstance(wanted, str):
        return given_prior(wanted, classes)
    if wanted == "uniform":
        return uniform
    found = SampledMass(rows, chunk_size)
    logits, prior, hinted = score(found.positions, found.x).clone(), uniform, rows.known.counts(classes)
    free = 1 - len(rows.known) / len(rows)
    for look in range(LOOKS + 1):
        if look:
            found.look(score, prior.log())
        for _ in range(100):
            # Posteriors under another prior are those of logits with its logarithm.
            updated = next_prior(free * found.of(logits, prior.log()) + hinted / len(rows))
            moved, prior = (updated - prior).abs().max(), updated
            if moved < 1e-6:
                break
    return prior
