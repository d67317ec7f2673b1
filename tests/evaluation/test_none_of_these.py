from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import boxcox
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from torch import Tensor

from finelens.evaluation.metrics import auroc_fpr95
from finelens.evaluation.mixture_level import box_cox, mixture_level, two_gaussians
from finelens.evaluation.none_of_these import (
    NoneOfThese,
    by_chance,
    complaint,
    gaussian_contrast,
    learn_none_of_these,
    negative_texts,
    probably_none,
    share_of_none,
    text_likeness,
    unlike_texts,
    unsure,
    with_neighbours,
)

# Two classes and two things that are none, each near one axis of 16.
NAMES = torch.eye(16)[:2]


def around(direction: int, count: int, seed: int, spread: float = 0.15) -> Tensor:
    noise = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    return F.normalize(F.one_hot(torch.tensor(direction), 16) + spread * noise, dim=1)


def alone(features: Tensor):
    return with_neighbours(features, None, None)


def test_features_with_their_neighbours():
    x, bank = torch.eye(4)[:2], torch.eye(4)
    (found,) = with_neighbours(x, bank.half(), torch.tensor([[1, 2], [3, 3]]))
    assert torch.equal(found, torch.tensor([[1, 0.5, 0.5, 0], [0, 1, 0, 1.0]]))
    # Without neighbours a photograph stands for them, so that likeness has one scale.
    assert torch.equal(next(alone(x)), 2 * x)


def test_text_likeness_is_the_largest_product_with_the_mean_prototype():
    x, heads = torch.tensor([[1.0, 0, 0]]), [torch.tensor([[1.0, 0, 0], [0, 1, 0]]), torch.tensor([[0, 0, 1.0], [0, 1, 0]])]
    assert text_likeness(x, heads).tolist() == [0.5]
    assert unlike_texts(x, heads).tolist() == [-0.5]


@pytest.mark.parametrize(("nearer", "chance"), [(0, False), (2, False), (3, True), (8, True)])
def test_chance_is_that_as_many_made_up_words_have_one_nearer_half_of_the_time(nearer, chance):
    # 1 - (1 - r)^2 >= 1/2 from r = 0.293 on: three words of eight, not two.
    x = torch.tensor([[0.6, 0.8]])
    names = torch.tensor([[1.0, 0], [-1, 0]])
    words = torch.tensor([[0, 1.0]] * nearer + [[0, -1.0]] * (8 - nearer))
    assert by_chance(x, names, words).tolist() == [chance]


def test_photographs_that_no_name_is_near_to_are_told_by_made_up_words():
    x = torch.cat([around(0, 30, 0), around(1, 30, 1), around(5, 60, 2)])
    words = F.normalize(torch.cat([around(c, 2, 10 + c, 0.3) for c in range(4, 16)]), dim=1)
    learned, doubt = learn_none_of_these(alone(x), [NAMES], (NAMES, words))
    # Half belong to no class: more than the mixture believes.
    assert mixture_level(text_likeness(2 * x[:90], [NAMES]).double().numpy()) is not None
    said = (doubt > 0.5).numpy()
    assert said[:60].mean() < 0.05
    assert said[60:].mean() > 0.95
    assert torch.equal(doubt, learned.doubt(text_likeness(2 * x, [NAMES])))
    assert share_of_none(doubt) == pytest.approx(0.5, abs=0.03)


def test_the_smaller_group_is_told_without_words():
    x = torch.cat([around(0, 60, 0), around(1, 60, 1), around(5, 40, 2)])
    _, doubt = learn_none_of_these(alone(x), [NAMES], None)
    assert (doubt[:120] > 0.5).double().mean() < 0.05
    assert (doubt[120:] > 0.5).double().mean() > 0.95


def test_where_nothing_speaks_for_it_nothing_is_said():
    x = torch.cat([around(0, 40, 0), around(1, 40, 1)])
    learned, doubt = learn_none_of_these(alone(x), [NAMES], (NAMES, around(5, 8, 3)))
    assert not (doubt > 0.5).any()
    # The level is the lowest of the fit: what is further off than all of it is doubted.
    assert learned.level == text_likeness(2 * x, [NAMES]).double().min().item()
    assert (learned.doubt(torch.zeros(1)) > 0.5).all()
    single, _ = learn_none_of_these(alone(x[:1]), [NAMES], None)
    assert np.isfinite(float(single.doubt(torch.zeros(1))))


def test_doubt_is_a_half_at_the_level():
    assert NoneOfThese(1.0, 0.5).doubt(torch.tensor([1.0, 0.5, 1.5])).tolist() == pytest.approx([0.5, 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))])


def test_the_level_of_a_mixture_lies_between_two_groups():
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(1.0, 0.1, 300), rng.normal(0.2, 0.1, 100)])
    assert 0.4 < mixture_level(two) < 0.8
    # One group, a group that holds most, few scores, and equal ones.
    assert mixture_level(rng.normal(1.0, 0.1, 400)) is None
    assert mixture_level(np.concatenate([rng.normal(1.0, 0.1, 100), rng.normal(0.2, 0.1, 300)])) is None
    assert mixture_level(two[::10]) is None
    assert mixture_level(np.ones(100)) is None


def test_the_transform_and_the_mixture_are_those_of_the_libraries():
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.gamma(4.0, 1.0, 300), rng.gamma(60.0, 0.3, 120)])
    expected = boxcox(x)[0]
    assert np.allclose(box_cox(x), expected, atol=1e-3 * np.ptp(expected))
    z = ((expected - expected.mean()) / expected.std())[:, None]
    theirs = GaussianMixture(2, means_init=[[-1.0], [1.0]], tol=1e-8, max_iter=2000, random_state=0).fit(z)
    weights, means, variances, likelihood = two_gaussians(z[:, 0], np.array([-1.0, 1.0]))
    assert likelihood == pytest.approx(theirs.score(z), abs=1e-3)
    assert means == pytest.approx(theirs.means_[:, 0], abs=0.02)
    assert weights == pytest.approx(theirs.weights_, abs=0.01)
    assert variances == pytest.approx(theirs.covariances_[:, 0, 0], abs=0.02)


def test_scores_are_higher_for_what_belongs_to_no_class():
    fit = torch.cat([around(c, 50, c) for c in (0, 1)])
    known, unknown = torch.cat([around(0, 20, 20), around(1, 20, 21)]), around(7, 40, 22)
    posteriors = F.one_hot(torch.tensor([0] * 50 + [1] * 50)).double()
    strange = np.array([False] * 40 + [True] * 40)
    asked = torch.cat([known, unknown])
    words = torch.eye(16)[4:]
    for score in (gaussian_contrast(asked, fit, posteriors), negative_texts(asked, NAMES, words, 10.0), unsure((10 * asked @ NAMES.T).softmax(1))):
        assert auroc_fpr95(score, strange)[0] > 0.9


def test_words_next_to_a_class_name_say_nothing_against_it():
    names, far = torch.eye(4)[:1], torch.eye(4)[1:]
    words = torch.cat([far] * 10 + [names])
    assert negative_texts(names, names, words, 50.0).item() < 1e-10
    # exp(50 cos) of the name beside thirty words at right angles.
    assert negative_texts(torch.tensor([[0.1, 0, 0, 0.0]]), names, words, 10.0).item() == pytest.approx(30 / (30 + np.e))


def test_auroc_and_the_share_that_passes():
    scores, unknown = np.array([0.1, 0.2, 0.3, 0.3, 0.9, 0.2]), np.array([False, False, False, True, True, True])
    auroc, fpr95 = auroc_fpr95(scores, unknown)
    assert auroc == pytest.approx(roc_auc_score(unknown, scores))
    # 95 % of the known lie below 0.29: of the unknown one does.
    assert fpr95 == pytest.approx(1 / 3)


def test_many_are_complained_of():
    assert complaint(1, 100) is None
    assert complaint(0, 0) is None
    assert complaint(20, 100).startswith("20 of 100 photographs probably belong to none of the classes")
    assert "1 of 4 photographs probably belongs" in complaint(1, 4)


def test_every_count_is_that_of_the_rows():
    doubt = torch.tensor([0.5004, 0.5006, 0.5, 0.9], dtype=torch.float64)
    assert probably_none(doubt).tolist() == [False, True, False, True]
    assert share_of_none(doubt) == 0.5
    assert share_of_none(doubt[:0]) is None
