from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.evaluation.familiarity import learn_familiarity
from finelens.evaluation.name_sense import LEAST_SENSE, name_sense


def around(direction: int, count: int, seed: int, spread: float = 0.05) -> Tensor:
    """Unit features near one axis of 16."""
    noise = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    return F.normalize(F.one_hot(torch.tensor(direction), 16) + spread * noise, dim=1)


def test_likeness_is_the_mean_cosine_with_the_nearest():
    x = torch.cat([around(0, 20, 0), around(1, 20, 1)])
    seen, near = learn_familiarity(x)
    new = around(0, 3, 2)
    assert torch.allclose(seen.likeness(new), (new @ seen.bank.float().T).topk(5, dim=1).values.mean(1))
    # Each photograph of the fit among the others, then and later: itself counts for nothing.
    others = (x @ x.T - 9 * torch.eye(40)).topk(5, dim=1)
    assert torch.allclose(seen.levels, others.values.mean(1).sort().values[[0, 2]], atol=1e-3)
    cosines, found = seen.nearest(x)
    assert torch.equal(found, near)
    assert (found != torch.arange(40)[:, None]).all()
    assert torch.allclose(cosines, others.values, atol=1e-3)


def test_another_collection_is_noticed_and_the_own_one_is_not():
    seen, _ = learn_familiarity(torch.cat([around(0, 100, 0), around(1, 100, 1)]))
    assert seen.complaint(seen.likeness(torch.cat([around(0, 50, 2), around(1, 50, 3)]))) is None
    # Of one of its classes alone: not another collection.
    assert seen.complaint(seen.likeness(around(1, 50, 3))) is None
    said = seen.complaint(seen.likeness(around(5, 34, 4)))
    assert said.startswith("34 of 34 photographs look unlike")
    assert bool(seen.unlike(seen.likeness(around(5, 1, 5))).all())
    # One photograph may be odd by chance.
    assert seen.complaint(seen.likeness(around(5, 1, 5))) is None
    assert seen.complaint(torch.zeros(0)) is None


def test_few_photographs_are_not_remembered():
    assert learn_familiarity(around(0, 19, 0)) is None


def test_a_large_fit_is_remembered_in_part():
    seen, _ = learn_familiarity(around(0, 3000, 0))
    assert seen.bank.shape == (1024, 16)
    assert seen.bank.dtype == torch.float16


@pytest.mark.parametrize("classes", [3, 20])
def test_names_that_point_at_the_images_stand_out(classes):
    images = torch.cat([around(c % 8, 10, c) for c in range(classes)])
    made_up = torch.cat([around(8 + i % 8, 1, 100 + i, 0.3) for i in range(60)])
    names = torch.cat([around(c % 8, 1, 200 + c, 0.3) for c in range(classes)])
    nothing = torch.cat([around(8 + c % 8, 1, 300 + c, 0.3) for c in range(classes)])
    assert name_sense(images, names, made_up, 20.0) > 2 * LEAST_SENSE
    assert name_sense(images, nothing, made_up, 20.0) < LEAST_SENSE
