"""When NoLA ends: held-out images, and patience without a new best."""

from __future__ import annotations

import pytest
import torch

from finelens.images.view_config import ViewConfig
from finelens.methods.nola.config import NolaConfig
from finelens.methods.nola.stopping import AgreementStop
from finelens.methods.nola.task import Nola
from finelens.protocol import Batch
from finelens.training.checkpoint import named_trainable
from finelens.training.config import TrainingConfig
from finelens.training.loop import Hooks, Trainer
from finelens.training.schedule import build_optimizer
from tests.methods.nola_world import B, C, P, prepared
from tests.methods.tiny import Pictures, random_batch, separating_rows, tiny_engine, whole_and_resumed


def play(agreements: list[float], patience: int) -> int:
    """Epochs until the rule ends a training with these agreements."""
    stop = AgreementStop(patience)
    for epoch, agreement in enumerate(agreements, start=1):
        right = torch.arange(100) < round(100 * agreement)
        stop.see(right.long(), torch.ones(100, dtype=torch.int64))
        assert stop.end_epoch()["held_out_agreement"] == pytest.approx(agreement)
        if stop.finished():
            return epoch
    return 0


def test_training_ends_after_patience_epochs_without_a_new_best():
    rising = [0.1, 0.2, 0.3, 0.4]
    assert play(rising, 1) == 0
    assert play([0.5, 0.5], 1) == 2
    assert play([0.5, 0.4, 0.6, 0.6, 0.6], 2) == 5
    assert play([0.5, 0.4, 0.3, 0.2], 2) == 3


def test_an_epoch_that_saw_no_held_out_image_says_nothing():
    stop = AgreementStop(1)
    assert stop.end_epoch() == {}
    assert not stop.finished()


@pytest.mark.parametrize(("images", "count"), [(1, 0), (2, 1), (5, 1), (100, 10)])
def test_held_out_images_are_a_function_of_the_seed(images, count):
    first, again, other = AgreementStop(1), AgreementStop(1), AgreementStop(1)
    for stop, seed in ((first, 0), (again, 0), (other, 1)):
        stop.hold_out(images, 0.1, seed)
    assert first.held_out.sum() == count
    assert torch.equal(first.held_out, again.held_out)
    if images == 100:
        assert not torch.equal(first.held_out, other.held_out)


def test_held_out_images_teach_nothing_and_are_compared_without_gradient(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch, stop="agreement", held_out=0.34)
    held = task.stopping.held_out.clone()
    assert held.sum() == 2
    before = engine.no_grad_forwards, engine.grad_forwards
    loss = task.step(batch, 0, 0).loss.detach()
    assert (engine.no_grad_forwards - before[0], engine.grad_forwards - before[1]) == (2, 4)
    assert (B * task.cost().no_grad_forwards, B * task.cost().grad_forwards) == (pytest.approx(2), pytest.approx(4))
    noise = torch.where(held[:, None, None, None], 255 - batch.strong, batch.strong)
    task.stopping.counts.zero_()
    torch.testing.assert_close(task.step(Batch(batch.index, strong=noise, centre=batch.centre), 0, 0).loss.detach(), loss, rtol=0, atol=0)
    student = task.predict_logits(batch.centre)["logits"].argmax(-1)
    agreed = (student == task.pseudo_labels(batch.index).labels)[held].sum().item()
    assert task.end_epoch(0)["held_out_agreement"] == agreed / 2


def test_a_batch_that_is_held_out_as_a_whole_changes_nothing_but_the_count(engine):
    batch = random_batch(B, 0)
    task = prepared(engine, batch, stop="agreement")
    task.stopping.held_out.fill_(True)
    output = task.step(batch, 0, 0)
    before = {name: parameter.detach().clone() for name, parameter in named_trainable(task).items()}
    optimizer = build_optimizer(task, 1e-2)
    output.loss.backward()
    optimizer.step()
    assert output.loss == 0
    for name, parameter in named_trainable(task).items():
        assert torch.equal(parameter, before[name]), name
    assert task.stopping.counts[1] == B


def test_a_run_that_ends_early_is_resumed_to_the_same_end(folder, tmp_path):
    pictures, config = Pictures(12), TrainingConfig(epochs=30, batch_size=5, lr=1e-4)
    start = separating_rows(tiny_engine(folder), random_batch(4, 0), C)

    def build() -> Nola:
        return Nola(tiny_engine(folder), start, NolaConfig(prompts=P, stop="agreement", held_out=0.4, patience=2, marginal="prior"))

    task, second = whole_and_resumed(build, pictures, config, tmp_path)
    for name, tensor in {**task.state_dict(), **task.tuned}.items():
        assert torch.equal({**second.state_dict(), **second.tuned}[name], tensor), name
    assert task.finished()
    # Resumed once more, it is at its end and stays there.
    third = build()
    rest = Trainer(third, third.engine, pictures, config, ViewConfig(), seed=0, hooks=Hooks(checkpoints=tmp_path))
    rest.resume()
    assert rest.position.epoch < 30
    assert rest.run() == []
