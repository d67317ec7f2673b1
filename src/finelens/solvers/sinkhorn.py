"""Optimal-transport balancing of text posteriors (Cuturi 2013; as the first step of InMaP, Qian et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from finelens.errors import UserError
from finelens.solvers.base import Solver
from finelens.solvers.gaussians import linear_log_proba
from finelens.solvers.known import Known
from finelens.solvers.parameters import COUNT, NOT_NEGATIVE, PRIOR, Constraints
from finelens.solvers.prior import estimate_prior
from finelens.solvers.rows import FitRows, linear

Prior = Literal["estimated", "uniform"] | Sequence[float]
# Potentials may move so far before the exponentials of a plan are taken anew: e^30 times any sum is a single-precision number.
FAR = 30.0


class SinkhornOt(Solver):
    """Adds one number to each class's logit so that the mean posterior of the images equals a class prior.

    The posteriors are the entropic transport plan from images of mass 1 / N to classes of mass ``prior``, with the negative text logit as cost and
    regularisation 1. The numbers are the classes' dual potentials; new images get the same ones.

    Args:
        prior: ``estimated`` (from the text posteriors, without labels), ``uniform``, or C numbers above 0.
        max_iter: Most Sinkhorn rounds.
        tol: Stop when every class's mass is this near to its prior, as a share of it.
        chunk_size: Images in work at a time.

    Attributes:
        text_: Scaled prototypes (C, D), float64.
        potentials_: (C,), float64, mean 0.
        prior_: (C,), float64.
        n_iter_: Rounds that ran.
    """

    state_names: ClassVar[tuple[str, ...]] = ("text_", "potentials_")
    internal: ClassVar[frozenset[str]] = Solver.internal | {"max_iter"}
    _parameter_constraints: ClassVar[Constraints] = {"prior": PRIOR, "max_iter": COUNT, "tol": NOT_NEGATIVE, "chunk_size": COUNT}

    def __init__(self, *, prior: Prior = "estimated", max_iter: int = 100, tol: float = 1e-3, chunk_size: int = 4096) -> None:
        self.prior, self.max_iter, self.tol, self.chunk_size = prior, max_iter, tol, chunk_size

    def _fit(self, x: Tensor, prototypes: Tensor, scale: float, known: Known) -> Tensor:
        self.text_ = scale * prototypes.double()
        logits = x @ self.text_.to(x).T  # (N, C)
        self.prior_ = class_prior(self.prior, logits, known)
        self.potentials_, self.n_iter_ = balance(logits, self.prior_, known, max_iter=self.max_iter, tol=self.tol, chunk_size=self.chunk_size)
        return (logits + self.potentials_.to(x)).log_softmax(1)

    def _fit_passes(self, rows: FitRows, prototypes: Tensor, scale: float) -> None:
        # Which rests on what is below.
        from finelens.solvers.sampled_balance import balanced, prior_of

        self.text_ = scale * prototypes.double()
        score = linear(self.text_)
        self.prior_ = prior_of(rows, self.prior, score, len(prototypes), self.chunk_size)
        self.potentials_ = balanced(rows, score, self.prior_, steps=self.max_iter, tol=self.tol, chunk_size=self.chunk_size)

    def _log_proba(self, x: Tensor) -> Tensor:
        return linear_log_proba(x, self.text_, self.potentials_)


def class_prior(wanted: Prior, logits: Tensor, known: Known) -> Tensor:
    """The prior (C,), float64, that a solver is asked for.

    Args:
        wanted: ``estimated``, ``uniform``, or C numbers above 0.
        logits: What ``estimated`` reads the posteriors of, (N, C).
        known: Rows whose class is given.

    Raises:
        UserError: The numbers are no prior of these classes.
    """
    classes = logits.shape[1]
    if not isinstance(wanted, str):
        return given_prior(wanted, classes).to(logits.device)
    if wanted == "uniform":
        return torch.full((classes,), 1 / classes, dtype=torch.float64, device=logits.device)
    return estimate_prior(known.clamp(logits).softmax(1)).to(logits.device)


def given_prior(values: Sequence[float], classes: int) -> Tensor:
    """Numbers as a prior (C,), float64.

    Raises:
        UserError: They are none of so many classes.
    """
    prior = np.asarray(values, dtype=np.float64)
    if prior.shape != (classes,) or not (np.isfinite(prior).all() and (prior > 0).all()):
        raise UserError(f"prior must hold one number above 0 for each of the {classes} classes, got {values!r}")
    return torch.from_numpy(prior / prior.sum())


def balance(
    logits: Tensor,
    prior: Tensor,
    known: Known,
    *,
    max_iter: int,
    tol: float,
    chunk_size: int,
    start: Tensor | None = None,
    ratio: Tensor | None = None,
) -> tuple[Tensor, int]:
    """Sinkhorn's algorithm on the classes' potentials: one number a class that brings the mean posterior to the prior.

    Each round is an exact block maximisation of the concave dual ``<prior, f> - mean_i logsumexp(logits_i + f)``, which never falls.

    Args:
        logits: (N, C).
        prior: (C,), float64.
        known: Rows of the plan that are fixed.
        max_iter: Most rounds.
        tol: Stop when every class's mass is this near to its prior, as a share of it.
        chunk_size: Images in work at a time.
        start: Potentials to start from, (C,), float64; zero without.
        ratio: What brings the masses of these images to those of all that they are drawn from, (C,), float64; None where they are all.

    Returns:
        Potentials (C,), float64, mean 0; and the number of rounds.
    """
    potentials = torch.zeros_like(prior) if start is None else start
    free, target = _free_images(logits, prior, known)
    plan, rounds = None, 0
    while rounds < max_iter:
        rounds += 1
        if plan is None or (potentials - plan.potentials).abs().max() > FAR:
            plan = Plan(free, potentials, chunk_size)
        mass = plan.mass(potentials)
        if ratio is not None:
            mass = mass * ratio
        if not len(free) or ((mass / target - 1).abs() < tol).all():
            break
        # A class below any float keeps its potential finite.
        potentials = potentials + target.log() - mass.clamp_min(1e-300).log()
    return potentials - potentials.mean(), rounds


def plan_mass(logits: Tensor, potentials: Tensor, chunk_size: int) -> Tensor:
    """Mean posterior (C,), float64: the column masses of the plan at potentials that are asked of once."""
    total = torch.zeros_like(potentials)
    for chunk in logits.split(chunk_size):
        total += (chunk + potentials.to(chunk)).softmax(1).sum(0, dtype=torch.float64)
    return total / max(1, len(logits))


class Plan:
    """Transport plans of one matrix of logits near some potentials, whose exponentials are taken once: a step is then two products with a vector.

    Args:
        logits: (N, C).
        potentials: (C,), float64.
        chunk_size: Images in work at a time.
    """

    def __init__(self, logits: Tensor, potentials: Tensor, chunk_size: int) -> None:
        self.potentials, self.chunk_size = potentials, chunk_size
        kernel = logits + potentials.to(logits)  # (N, C)
        self.kernel = kernel.sub_(kernel.amax(1, keepdim=True)).exp_() if len(kernel) else kernel

    def mass(self, potentials: Tensor) -> Tensor:
        """Mean posterior (C,), float64, at potentials no more than :data:`FAR` away: the column masses of the plan whose rows are scaled exactly."""
        scale = (potentials - self.potentials).exp()
        own, total = scale.to(self.kernel), torch.zeros_like(potentials)
        for chunk in self.kernel.split(self.chunk_size):
            total += (chunk @ own).reciprocal_() @ chunk
        return scale * total / max(1, len(self.kernel))


def _free_images(logits: Tensor, prior: Tensor, known: Known) -> tuple[Tensor, Tensor]:
    """Logits of the images without a hint, and the mass (C,) that is left for them: ``N prior - hinted``, at least one image a class.

    Hinted rows of the plan are fixed. Hints may exceed the prior of a class; the plan would have no solution without that floor.
    """
    if not len(known):
        return logits, prior
    mask = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    mask[known.rows] = False
    return logits[mask], left_for_free(len(logits), prior, known)


def left_for_free(count: int, prior: Tensor, known: Known) -> Tensor:
    """The share (C,) of each class that is left of the prior (C,) for the images without a hint among so many."""
    if not len(known):
        return prior
    whole = count * prior
    left = torch.maximum(whole - known.counts(len(prior)), whole.clamp_max(1.0))
    return left / left.sum()
