"""The marginal losses and the estimated prior, on inputs whose answer is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.solvers.prior import estimate_prior
from finelens.training.losses import log_batch_marginal, marginal_loss, running_log_marginal


def long_tail_posteriors(n: int = 4000, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Posteriors under a uniform prior of images whose classes are long-tailed, and the classes' shares."""
    draw = torch.Generator().manual_seed(0)
    prior = 0.6 ** torch.arange(classes, dtype=torch.float64)
    prior /= prior.sum()
    labels = torch.multinomial(prior, n, replacement=True, generator=draw)
    evidence = torch.randn(n, classes, generator=draw, dtype=torch.float64)
    evidence[torch.arange(n), labels] += 2.0
    # Likelihood ratio of N(2, 1) against N(0, 1) is exp(2 x - 2).
    return (2 * evidence - 2).softmax(1), torch.bincount(labels, minlength=classes) / n


def test_estimated_prior_is_nearer_to_a_long_tail_than_uniform():
    posteriors, truth = long_tail_posteriors()

    def distance(prior):
        return (prior - truth).abs().sum().item()

    uniform, default, free = torch.full((10,), 0.1), estimate_prior(posteriors), estimate_prior(posteriors, concentration=0.0)
    assert distance(default) < 0.75 * distance(uniform)
    # Without the pull to uniform EM finds the shares, which plain averaging of posteriors does not.
    assert distance(free) < 0.1 < distance(posteriors.mean(0))
    assert (default[:3].diff() < 0).all()


def test_estimated_prior_of_uniform_posteriors_is_uniform():
    torch.testing.assert_close(estimate_prior(torch.full((7, 5), 0.2)), torch.full((5,), 0.2, dtype=torch.float64), atol=1e-9, rtol=0)
    assert torch.equal(estimate_prior(torch.zeros(0, 4)), torch.full((4,), 0.25, dtype=torch.float64))


def test_estimated_prior_never_gives_a_class_up():
    certain = torch.eye(4)[torch.zeros(50, dtype=torch.long)]
    prior = estimate_prior(certain)
    assert prior.min() > 0.05
    assert prior[0] == pytest.approx((1 + 0.25) / 2)


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_losses_are_finite_for_extreme_logits(extreme):
    logits = torch.zeros(5, 4)
    logits[:, 0] = extreme
    logits.requires_grad_(True)
    first = running_log_marginal(logits, None)
    second = running_log_marginal(logits, first)
    loss = marginal_loss(second, torch.full((4,), 1 / 4)) + F.cross_entropy(logits, torch.ones(5, dtype=torch.long))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


def test_running_marginal_is_the_half_sum():
    logits, previous = torch.randn(6, 4), torch.tensor([0.1, 0.2, 0.3, 0.4])
    mean = logits.softmax(1).mean(0)
    torch.testing.assert_close(log_batch_marginal(logits).exp(), mean)
    torch.testing.assert_close(running_log_marginal(logits, previous.log()).exp(), 0.5 * (previous + mean))
