"""What a person said about a few images counts in every method that trains."""

from __future__ import annotations

import pytest
import torch

from finelens.errors import UserError
from finelens.images.batches import centre_batches
from finelens.images.decode import DecodeLimits
from finelens.images.load import decode_limits, load
from finelens.methods.nola.labelling import with_hints
from finelens.methods.parts.hint_memory import HintMemory
from finelens.methods.registry import find_method
from finelens.protocol import Hints, TargetFeatures
from finelens.runs.fit import belonging, fit
from finelens.training.loop import Hooks, Interrupted
from finelens.training.pseudo_labels import PseudoLabels
from tests.toy import QUIET, TRAINING, Log, pictures, prepare_toy, quick, stop_after

HINTS = Hints(torch.tensor([1, 4, 9]), torch.tensor([2, 0, 3]))
SELF_TRAINING = [name for name in TRAINING if not find_method(name).few_shot]


def memory(hints=HINTS) -> HintMemory:
    found = HintMemory()
    found.start(hints)
    return found


def test_a_hinted_image_is_found_by_its_position():
    hinted, labels = memory().find(torch.tensor([4, 0, 9, 10, 1]))
    assert hinted.tolist() == [True, False, True, False, True]
    assert labels.tolist() == [0, 3, 2]


def test_pseudo_labels_follow_the_hints_and_count_fully():
    index = torch.tensor([0, 1, 9])
    before = PseudoLabels(torch.tensor([1, 1, 1]), torch.tensor([0.2, 0.3, 0.4]), torch.full((3, 4), 0.25))
    after = memory().apply_to(index, before)
    assert after.labels.tolist() == [1, 2, 3]
    assert after.weights.tolist() == pytest.approx([0.2, 1.0, 1.0])
    assert after.posterior.tolist() == [[0.25] * 4, [0, 0, 1, 0], [0, 0, 0, 1]]
    assert memory().clamp_cosines(index, torch.zeros(3, 4)).tolist() == [[0] * 4, [-1, -1, 1, -1], [-1, -1, -1, 1]]


def test_without_hints_everything_is_the_same_object():
    index, posterior = torch.tensor([0, 1]), torch.rand(2, 4)
    pseudo = PseudoLabels(torch.tensor([1, 1]), torch.ones(2), posterior)
    for empty in (memory(None), memory()):
        where = index if empty.index.numel() == 0 else torch.tensor([0, 2])
        assert empty.apply_to(where, pseudo) is pseudo
        assert empty.clamp(where, posterior) is posterior
        assert empty.clamp_cosines(where, posterior) is posterior


def test_a_memory_is_restored_whatever_its_size():
    again = HintMemory()
    again.load_state_dict(memory().state_dict())
    assert torch.equal(again.index, HINTS.index)
    assert torch.equal(again.label, HINTS.label)


def test_hinted_images_teach_the_labelling_network_what_they_are():
    positions, labels = with_hints(torch.tensor([0, 4, 5]), torch.tensor([3, 3, 1]), HINTS)
    assert dict(zip(positions.tolist(), labels.tolist(), strict=True)) == {0: 3, 5: 1, 1: 2, 4: 0, 9: 3}
    assert len(positions) == 5


def test_images_of_no_class_are_left_out_and_the_others_keep_their_hints():
    store = load(pictures(1), DecodeLimits(), QUIET).store
    features = TargetFeatures(torch.arange(8.0).reshape(4, 2), torch.zeros(4, 3), Hints(torch.tensor([1, 2, 3]), torch.tensor([-1, 0, 2])))
    subset, left, zero_shot = belonging(store, features, torch.arange(4.0)[:, None])
    assert subset.ids == [store.ids[i] for i in (0, 2, 3)]
    assert torch.equal(subset[1], store[2])
    assert left.global_.tolist() == [[0, 1], [4, 5], [6, 7]]
    assert (left.hints.index.tolist(), left.hints.label.tolist()) == ([1, 2], [0, 2])
    assert zero_shot[:, 0].tolist() == [0, 2, 3]
    with pytest.raises(UserError, match="none of the classes"):
        belonging(store, TargetFeatures(features.global_, features.cls, Hints(torch.arange(4), torch.full((4,), -1))), torch.zeros(4, 1))


def run(backbone, method, hints, hooks=None, *, resume=False, images=None, **training):
    config, prepared = prepare_toy(backbone, method, options=quick(**{"epochs": 3, **training}))
    store = load(pictures(3) if images is None else images, decode_limits(config.views, prepared.engine.backbone.preprocess), QUIET).store
    return store, fit(prepared, store, config, QUIET, hooks or Hooks(run=Log()), hints=hints, resume=resume).model


def weights(model):
    return {**model.engine.backbone.image_state(), **model.task.prediction_state()}


@pytest.mark.parametrize("method", SELF_TRAINING)
def test_hints_move_their_images_towards_what_was_said(tiny_vit, method):
    rates = {"epochs": 6, "lr": 3e-3}
    store, plain = run(tiny_vit, method, None, **rates)
    (_, views), *_ = centre_batches(store, plain.engine.backbone.preprocess, 64)
    before = plain.logits(views)["logits"].softmax(1)
    # Four images that the plain run would rather call something else.
    index = torch.arange(4)
    wanted = before[:4].argmin(1)
    _, hinted = run(tiny_vit, method, Hints(index, wanted), **rates)
    after = hinted.logits(views)["logits"].softmax(1)
    assert after[index, wanted].log().mean() > before[index, wanted].log().mean()
    assert not any("hints" in name for name in hinted.task.prediction_state())


@pytest.mark.parametrize("method", SELF_TRAINING)
def test_images_of_no_class_leave_no_trace(tiny_vit, method):
    """The same weights as if the photographs had not been there."""
    images = pictures(2)
    store, _ = run(tiny_vit, method, None, epochs=1, images=images)
    kinds = {sample_id: i for i, sample_id in enumerate(load(images, DecodeLimits(), QUIET).store.ids)}
    gone = [kinds[store.ids[i]] for i in (2, 5)]
    _, told = run(tiny_vit, method, Hints(torch.tensor([2, 5]), torch.tensor([-1, -1])), epochs=1, images=images)
    records = load(images, DecodeLimits(), QUIET).records
    without = [image for image, record in zip(images, records, strict=True) if record.index not in gone]
    _, never = run(tiny_vit, method, None, epochs=1, images=without)
    a, b = weights(told), weights(never)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", SELF_TRAINING)
def test_a_run_with_hints_goes_on_to_the_same_bits(tiny_vit, method, tmp_path):
    hints = Hints(torch.tensor([0, 3, 7]), torch.tensor([1, -1, 2]))
    _, whole = run(tiny_vit, method, hints)
    with pytest.raises(Interrupted):
        run(tiny_vit, method, hints, Hooks(run=Log(), checkpoints=tmp_path, should_stop=stop_after(2)))
    _, again = run(tiny_vit, method, hints, Hooks(run=Log(), checkpoints=tmp_path), resume=True)
    a, b = weights(whole), weights(again)
    assert all(torch.equal(a[name], b[name]) for name in a)
