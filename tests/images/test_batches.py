from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from finelens.images.batches import batches, centre_batches, epoch_order
from finelens.images.view_config import ViewConfig
from finelens.images.views import centre_view, crop_views, strong_view, weak_view
from finelens.protocol import ViewPlan

from .helpers import store

PLAN = ViewPlan(weak=True, strong=True, crops=3)
CONFIG = ViewConfig(crop_low=0.4)


def run(preprocess, count=11, plan=PLAN, **options):
    return list(batches(store(count), preprocess, plan, CONFIG, 0, 1, 4, **options))


def equal(a, b) -> bool:
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("index", "weak", "strong", "crops"))


def view_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("finelens-views")]


def test_order_is_a_stateless_permutation():
    order = epoch_order(50, 0, 2)
    assert sorted(order) == list(range(50))
    np.testing.assert_array_equal(order, epoch_order(50, 0, 2))
    assert not np.array_equal(order, epoch_order(50, 0, 3))
    assert not np.array_equal(order, epoch_order(50, 1, 2))


def test_batches_hold_the_views_of_their_keys(preprocess):
    images = store(11)
    got = run(preprocess)
    assert [len(b.index) for b in got] == [4, 4, 3]
    assert torch.cat([b.index for b in got]).tolist() == epoch_order(11, 0, 1).tolist()
    for batch in got:
        for row, i in enumerate(batch.index.tolist()):
            key = (0, 1, images.ids[i])
            assert torch.equal(batch.weak[row], weak_view(images[i], preprocess, *key))
            assert torch.equal(batch.strong[row], strong_view(images[i], preprocess, *key, CONFIG))
            assert torch.equal(batch.crops[row], crop_views(images[i], preprocess, *key, 3, 0.4, 0.9))


def test_the_centre_view_is_the_one_of_predictions_in_every_epoch(preprocess):
    images = store(5)
    plan = ViewPlan(weak=False, strong=False, centre=True)
    for epoch in (0, 1):
        for batch in batches(images, preprocess, plan, CONFIG, 0, epoch, 4):
            assert batch.weak is None
            for row, i in enumerate(batch.index.tolist()):
                assert torch.equal(batch.centre[row], centre_view(images[i], preprocess))


@pytest.mark.parametrize("workers", [0, 2, 5])
def test_result_does_not_depend_on_workers(preprocess, workers):
    one, other = run(preprocess, workers=1), run(preprocess, workers=workers)
    assert len(one) == len(other)
    assert all(equal(a, b) for a, b in zip(one, other, strict=True))


def test_resume_inside_an_epoch(preprocess):
    full, rest = run(preprocess), run(preprocess, start_step=2)
    assert len(rest) == 1
    assert equal(full[2], rest[0])
    assert run(preprocess, start_step=3) == []


def test_views_follow_the_sample_not_its_batch(preprocess):
    everything = {int(i): b.weak[r] for b in run(preprocess) for r, i in enumerate(b.index)}
    for batch in run(preprocess, order=np.array([7, 2, 5])):
        for row, i in enumerate(batch.index.tolist()):
            assert torch.equal(batch.weak[row], everything[i])


def test_only_planned_views_are_built(preprocess):
    (batch,) = run(preprocess, count=2, plan=ViewPlan(weak=False, strong=True, crops=0))
    assert batch.weak is None
    assert batch.crops is None
    assert batch.strong.shape == (2, 3, 64, 64)


def test_fewer_images_than_a_batch_and_none(preprocess):
    assert len(run(preprocess, count=1)) == 1
    assert run(preprocess, count=0) == []
    assert list(centre_batches(store(0), preprocess, 4)) == []


class Failing:
    ids = tuple(f"id{i}" for i in range(12))

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == 9:
            raise RuntimeError("broken original")
        return torch.zeros(3, 70, 70, dtype=torch.uint8)


def test_exception_in_a_worker_surfaces_and_threads_stop(preprocess):
    stream = batches(Failing(), preprocess, PLAN, CONFIG, 0, 0, 4, order=np.arange(12))
    assert next(stream).index.tolist() == [0, 1, 2, 3]
    assert next(stream).index.tolist() == [4, 5, 6, 7]
    with pytest.raises(RuntimeError, match="broken original"):
        next(stream)
    assert view_threads() == []


def test_closing_early_stops_the_threads(preprocess):
    stream = batches(store(40), preprocess, PLAN, CONFIG, 0, 0, 4)
    next(stream)
    assert view_threads()
    stream.close()
    assert view_threads() == []


def test_next_batch_is_built_ahead_and_no_more(preprocess):
    touched = []

    class Watched(Failing):
        def __getitem__(self, index):
            touched.append(index)
            return torch.zeros(3, 70, 70, dtype=torch.uint8)

    stream = batches(Watched(), preprocess, PLAN, CONFIG, 0, 0, 2, order=np.arange(12), workers=1)
    next(stream)
    stream.close()
    assert set(touched) <= {0, 1, 2, 3}


def test_centre_batches_are_in_store_order(preprocess):
    images = store(9)
    got = list(centre_batches(images, preprocess, 4))
    assert torch.cat([index for index, _ in got]).tolist() == list(range(9))
    views = torch.cat([v for _, v in got])
    assert all(torch.equal(views[i], centre_view(images[i], preprocess)) for i in range(9))
