"""The learner of the live review, and the groups that it shows."""

from __future__ import annotations

import pytest
import torch

from finelens.protocol import Hints
from finelens.solvers import Consensus
from finelens.solvers.groups import group_around
from finelens.solvers.known import Known
from finelens.solvers.learner import Learner
from tests.solvers.data import cloud


@pytest.fixture(scope="module")
def world():
    x, w, y = cloud([20, 12, 8])
    return torch.as_tensor(x).float(), torch.as_tensor(w).float(), torch.as_tensor(y)


def test_lessons_are_those_of_the_method_with_hints(world):
    x, w, y = world
    learner, rows = Learner([x, x], w, 20.0), torch.cat([(y == c).nonzero()[:1, 0] for c in range(3)])
    found = learner.posteriors(Known(rows, y[rows]), 3)
    method = Consensus().fit_predict_proba([x, x], prototypes=w, logit_scale=20.0, hints=Hints(rows, y[rows]))
    others = torch.ones(len(x), dtype=torch.bool).index_fill(0, rows, False)
    torch.testing.assert_close(found[others], method[others], rtol=1e-4, atol=1e-6)
    nobody = Known(rows[:0], rows[:0])
    torch.testing.assert_close(learner.posteriors(nobody, 3), Consensus().fit_predict_proba([x, x], prototypes=w, logit_scale=20.0))


def test_a_view_that_the_method_does_not_listen_to_teaches_nothing():
    x, w, y = (torch.as_tensor(part) for part in cloud([40, 30, 20]))
    x, w = x.float(), w.float()
    noise = torch.randn(len(x), 300, generator=torch.Generator().manual_seed(0))
    views, rows = [x, x, noise], torch.cat([(y == c).nonzero()[:1, 0] for c in range(3)])
    learner = Learner(views, w, 20.0)
    assert learner.solver.weights_[2] == 0
    method = Consensus().fit_predict_proba(views, prototypes=w, logit_scale=20.0, hints=Hints(rows, y[rows]))
    others = torch.ones(len(x), dtype=torch.bool).index_fill(0, rows, False)
    torch.testing.assert_close(learner.posteriors(Known(rows, y[rows]), 3)[others], method[others], rtol=1e-4, atol=1e-6)
    assert not learner.looks[:, -300:].any()


def test_a_name_that_a_person_thought_of_is_learnt_from_its_answers(world):
    x, w, y = world
    learner = Learner([x], w[:2], 20.0)
    rows = torch.cat([(y == c).nonzero()[:2, 0] for c in range(3)])
    found = learner.posteriors(Known(rows, y[rows]), 3)
    assert found.shape == (40, 3)
    assert (found.argmax(1) == y)[y == 2].all()


def test_no_names_at_all(world):
    x, _, y = world
    learner, rows = Learner([x], None), torch.cat([(y == c).nonzero()[:1, 0] for c in range(3)])
    assert learner.log_p.shape == (40, 0)
    assert (learner.posteriors(Known(rows, y[rows]), 3).argmax(1) == y).float().mean() > 0.95


def test_a_group_is_what_is_nearest_and_free_without_copies():
    angle = torch.tensor([0.0, 0.3, 0.31, 0.6, 0.9, 3.0])
    looks = torch.stack([angle.cos(), angle.sin()], 1)
    free = torch.ones(6, dtype=torch.bool)
    free[3] = False
    # Of the two at 0.3 the second is a copy, and the one at 0.6 is taken.
    assert group_around(looks, 0, free, size=3, copy=0.97).tolist() == [0, 1, 4]
    assert group_around(looks, 0, free, size=2, copy=0.97).tolist() == [0, 1]
    # The asked one is in its group whatever else is free.
    assert group_around(looks, 3, free, size=1).tolist() == [3]
