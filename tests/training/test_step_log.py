"""Numbers of a step that are read a step late, as on a GPU: the same history, the same errors, nothing asked of the device in between."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from finelens.errors import UserError
from finelens.methods.microclip.config import MicroClipConfig
from finelens.methods.microclip.task import Features, MicroClip
from finelens.protocol import StepOutput
from finelens.training import loop
from finelens.training.loop import Interrupted, Trainer
from finelens.training.marginal import ClassPrior
from finelens.training.pseudo_labels import PseudoLabels, self_training_loss
from finelens.training.step_log import HostCopy, StepLog, number
from tests.methods.tiny import random_heads, tiny_engine
from tests.toy import Log, stop_after
from tests.training.test_loop import assert_same, make_trainer, state


def late_trainer(**hooks) -> Trainer:
    """As on a GPU: the log holds tensors, and is read when the next step is queued."""
    trainer = make_trainer(**hooks)
    trainer.lag = 1
    step = trainer.task.step

    def with_tensors(batch, *given) -> StepOutput:
        output = step(batch, *given)
        return StepOutput(output.loss, {name: torch.tensor(value) for name, value in output.log.items()}, torch.zeros_like(batch.index))

    trainer.task.step = with_tensors
    return trainer


def test_history_and_weights_are_those_of_numbers_read_at_once():
    log, late_log = Log(), Log()
    at_once, late = make_trainer(run=log), late_trainer(run=late_log)
    at_once.run()
    late.run()
    assert_same(state(at_once), state(late))
    assert [{k: v for k, v in event.items() if not k.startswith("pseudo")} for event in late_log.events] == log.events
    assert late_log.events[0]["pseudo_largest"] == 1


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
def test_an_interruption_loses_no_number(tmp_path, steps):
    whole, log = late_trainer(run=(reference := Log())), Log()
    whole.run()
    with pytest.raises(Interrupted):
        late_trainer(run=log, checkpoints=tmp_path, should_stop=stop_after(steps)).run()
    second = late_trainer(run=log, checkpoints=tmp_path)
    second.resume()
    second.run()
    assert_same(state(whole), state(second))
    assert log.events == reference.events


@pytest.mark.parametrize("poison_at", [5, 6])
def test_a_bad_loss_is_found_late_and_named_right(tmp_path, poison_at):
    trainer = late_trainer(checkpoints=tmp_path / "checkpoint", failures=tmp_path / "failure")
    trainer.task.poison_at = poison_at
    where = f"the loss became nan in epoch 2, step {poison_at - 3}; the last checkpoint is intact"
    with pytest.raises(UserError, match=where + ".*The batch and the state after it are in"):
        trainer.run()
    # The last step of an epoch is looked at before the checkpoint is replaced.
    again = late_trainer(checkpoints=tmp_path / "checkpoint")
    again.resume()
    assert (again.position.epoch, again.position.step) == (1, 0)
    again.run()
    whole = late_trainer()
    whole.run()
    assert_same(state(whole), state(again))


def test_a_bad_loss_before_an_interruption_is_not_saved(tmp_path):
    trainer = late_trainer(checkpoints=tmp_path, should_stop=stop_after(5))
    trainer.task.poison_at = 5
    with pytest.raises(UserError, match="epoch 2, step 2"):
        trainer.run()
    again = late_trainer(checkpoints=tmp_path)
    again.resume()
    assert torch.isfinite(again.task.w).all()


def test_a_bad_gradient_is_found_late_and_named(tmp_path):
    trainer = late_trainer(checkpoints=tmp_path)
    step = trainer.task.step

    def steep(*given) -> StepOutput:
        output = step(*given)
        w = trainer.task.w
        return StepOutput(output.loss + ((w - w.detach()).sum().sqrt() if len(trainer.task.seen) == 2 else 0.0), output.log)

    trainer.task.step = steep
    with pytest.raises(UserError, match="the gradient of w is not finite in epoch 1, step 2"):
        trainer.run()


def test_numbers_keep_their_value():
    output = StepOutput(torch.tensor(0.1), {"plain": 0.3, "late": torch.tensor(0.7), "wide": torch.tensor(1 / 3, dtype=torch.float64)})
    step_log = StepLog.of(None, output, {})
    assert step_log.log() == {"loss": torch.tensor(0.1).item(), "plain": 0.3, "late": torch.tensor(0.7).item(), "wide": 1 / 3}
    assert step_log.bad_gradient() is None
    assert HostCopy(torch.arange(3)).read().tolist() == [0, 1, 2]


class OnApple(torch.Tensor):
    """As on an Apple GPU: not on the host, and never float64."""

    device = torch.device("mps")

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def to(self, dtype):
        return self.double() if dtype is torch.float64 else super().to(dtype)


def test_numbers_of_a_device_without_float64():
    output = StepOutput(torch.tensor(0.1).as_subclass(OnApple), {"late": number(torch.tensor(0.7).as_subclass(OnApple))})
    assert StepLog.of(None, output, {}).log() == {"loss": torch.tensor(0.1).item(), "late": torch.tensor(0.7).item()}


# The meta device has no values: whoever asks for one fails, as a GPU would be made to wait.


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def test_the_shared_loss_asks_for_no_value():
    pseudo = PseudoLabels(torch.empty(4, dtype=torch.int64, device="meta"), meta(4), meta(4, 3))
    loss, log = self_training_loss(meta(4, 3), pseudo, ClassPrior("uniform", 3, torch.float32).to("meta"), 1.0)
    assert all(value.device.type == "meta" for value in (loss, *log.values()))


def test_the_loss_of_microclip_asks_for_no_value(tmp_path):
    task = MicroClip(tiny_engine(tmp_path / "vit"), random_heads(3), MicroClipConfig()).to("meta")
    loss, log = task.loss(Features(meta(4, 48), meta(4, 48)), meta(4, 3), first=True)
    assert {"ce", "marginal", "agreement", "pseudo_confidence"} == set(log)
    assert all(value.device.type == "meta" for value in (loss, *log.values()))
    task.hints.clamp_cosines(torch.arange(4), meta(4, 3))


def test_on_a_cpu_numbers_are_plain():
    assert type(number(torch.tensor(2.0, requires_grad=True))) is float
    assert number(meta()).device.type == "meta"


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_views_lie_in_pinned_memory_for_a_gpu_alone(monkeypatch, device, pinned):
    trainer, asked = make_trainer(), []
    assert trainer.lag == 0

    def recorded(*given, **options):
        asked.append(options["pinned"])
        yield from ()

    monkeypatch.setattr(loop, "batches", recorded)
    trainer.engine.device = SimpleNamespace(type=device)
    trainer._epoch()
    assert asked == [pinned]
