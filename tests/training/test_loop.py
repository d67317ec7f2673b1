"""The loop: schedule, events, interruption, and a checkpoint from which everything goes on exactly."""

from __future__ import annotations

import ast
import inspect
import math

import pytest
import torch

from finelens.errors import UserError
from finelens.images.view_config import ViewConfig
from finelens.protocol import Optimisation
from finelens.training import loop
from finelens.training.checkpoint import Position, load_checkpoint, named_trainable, read_events_offset, save_checkpoint
from finelens.training.config import TrainingConfig
from finelens.training.loop import Hooks, Interrupted, Trainer
from finelens.training.schedule import build_optimizer, cosine_lr, learning_rate
from tests.toy import Log, stop_after
from tests.training.tasks import LeastSquares, make_engine, make_store

CONFIG = TrainingConfig(epochs=3, batch_size=4, lr=0.05, min_lr=0.001)


def make_trainer(config: TrainingConfig = CONFIG, **hooks) -> Trainer:
    engine = make_engine()
    engine.backbone.fit_centre(torch.rand(4, 3, generator=torch.Generator().manual_seed(1)))
    return Trainer(LeastSquares(engine), engine, make_store(), config, ViewConfig(), seed=0, hooks=Hooks(**hooks))


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {**trainer.task.state_dict(), **trainer.engine.backbone.state_dict()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_every_image_once_an_epoch_in_an_order_of_its_own():
    trainer = make_trainer()
    trainer.run()
    by_epoch = [[index for epoch, _, batch in trainer.task.seen if epoch == e for index in batch] for e in range(3)]
    assert all(sorted(order) == list(range(10)) for order in by_epoch)
    assert by_epoch[0] != by_epoch[1]
    assert [len(batch) for _, _, batch in trainer.task.seen] == [4, 4, 2] * 3
    assert [(epoch, step) for epoch, step, _ in trainer.task.seen] == [(e, s) for e in range(3) for s in range(3)]


def test_epoch_numbers_are_means_over_images():
    log = Log()
    trainer = make_trainer(run=log)
    history = trainer.run()
    assert [event["epoch"] for event in log.events] == [0, 1, 2]
    # Batches of 4, 4 and 2: a mean over steps would give 10 / 3.
    assert [event["count"] for event in log.events] == [pytest.approx((16 + 16 + 4) / 10)] * 3
    assert [event["ended"] for event in log.events] == [0, 1, 2]
    assert [event["loss"] for event in log.events] == [numbers["loss"] for numbers in history]
    assert history[-1]["loss"] < history[0]["loss"]


def test_a_task_may_end_before_the_last_epoch():
    trainer = make_trainer()
    trainer.task.finished = lambda: trainer.task.steps.item() >= 6
    history = trainer.run()
    assert len(history) == 2
    assert trainer.position == Position(epoch=2)
    assert trainer.run() == []


def test_one_adamw_step_by_hand():
    trainer = make_trainer(TrainingConfig(epochs=1, batch_size=16, lr=0.05, min_lr=0.0, weight_decay=0.3))
    trainer.run()
    # The first AdamW step moves each entry by lr against the sign of its gradient; groups have their own decay and rate.
    torch.testing.assert_close(trainer.task.w.detach().abs(), torch.full((3,), 0.05), atol=1e-5, rtol=0)
    assert torch.equal(trainer.task.idle, torch.ones(2))
    decayed = 1 - 0.5 * 0.05 * 0.1
    torch.testing.assert_close((trainer.engine.backbone.scale.detach() - decayed).abs(), torch.full((3,), 0.025), atol=1e-5, rtol=0)


def test_rate_follows_the_cosine_over_all_steps():
    trainer, rates = make_trainer(), []
    trainer.hooks = Hooks(should_stop=lambda: rates.append([group["lr"] for group in trainer.optimizer.param_groups]) or False)
    trainer.run()
    expected = [0.001 + 0.049 * (1 + math.cos(math.pi * t / 9)) / 2 for t in range(9)]
    assert [first for first, _ in rates] == pytest.approx(expected)
    assert [second for _, second in rates] == pytest.approx([rate / 2 for rate in expected])


def test_progress_counts_images():
    counts: list[int] = []
    make_trainer(on_images=counts.append).run()
    assert counts == [4, 4, 2] * 3


@pytest.mark.parametrize("steps", range(1, 10))
def test_interrupted_anywhere_and_resumed_ends_the_same(tmp_path, steps):
    whole, log = make_trainer(run=(reference := Log())), Log()
    whole.run()
    first = make_trainer(run=log, checkpoints=tmp_path, should_stop=stop_after(steps))
    with pytest.raises(Interrupted):
        first.run()
    second = make_trainer(run=log, checkpoints=tmp_path)
    second.resume()
    second.run()
    assert_same(state(whole), state(second))
    assert log.events == reference.events
    assert [first for first, _, _ in first.task.seen] + [first for first, _, _ in second.task.seen] == [e for e, _, _ in whole.task.seen]
    assert (second.engine.grad_forwards, second.engine.no_grad_forwards) == (whole.engine.grad_forwards, whole.engine.no_grad_forwards)


def test_resume_after_the_last_epoch_does_nothing(tmp_path):
    whole = make_trainer(checkpoints=tmp_path)
    whole.run()
    again = make_trainer(checkpoints=tmp_path)
    again.resume()
    assert again.run() == []
    assert again.task.seen == []
    assert_same(state(whole), state(again))


def test_loss_that_is_not_finite_stops_before_it_does_harm(tmp_path):
    trainer = make_trainer(checkpoints=tmp_path)
    trainer.task.poison_at = 5
    with pytest.raises(UserError, match="the loss became nan in epoch 2, step 2; the last checkpoint is intact"):
        trainer.run()
    assert torch.isfinite(trainer.task.w).all()
    again = make_trainer(checkpoints=tmp_path)
    again.resume()
    assert (again.position.epoch, again.position.step) == (1, 0)
    again.run()
    whole = make_trainer()
    whole.run()
    assert_same(state(whole), state(again))


# The checkpoint file.


def test_checkpoint_restores_everything(tmp_path):
    trainer = make_trainer(checkpoints=tmp_path, should_stop=stop_after(2))
    with pytest.raises(Interrupted):
        trainer.run()
    save_checkpoint(tmp_path, trainer.task, trainer.engine.backbone, trainer.optimizer, trainer.position, 1234)
    assert read_events_offset(tmp_path) == 1234
    other = make_trainer()
    other.engine.backbone.centre.zero_()
    position = load_checkpoint(tmp_path, other.task, other.engine.backbone, other.optimizer)
    assert position == Position(0, 2, 8, trainer.position.sums, 0, 8)
    assert position.sums["count"] == 32
    assert_same(state(trainer), state(other))
    for name, parameter in named_trainable(trainer.task).items():
        ours, theirs = trainer.optimizer.state[parameter], other.optimizer.state[named_trainable(other.task)[name]]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not other.optimizer.state[other.task.idle]


def test_checkpoint_is_replaced_whole(tmp_path, monkeypatch):
    trainer = make_trainer(checkpoints=tmp_path, should_stop=stop_after(1))
    with pytest.raises(Interrupted):
        trainer.run()
    before = (tmp_path / "last.safetensors").read_bytes()

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", disk_full)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(tmp_path, trainer.task, trainer.engine.backbone, trainer.optimizer, trainer.position, 0)
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]


def test_checkpoint_that_is_missing_damaged_or_of_another_task(tmp_path):
    trainer = make_trainer(checkpoints=tmp_path)
    assert read_events_offset(tmp_path) == 0
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        trainer.resume()
    trainer.run()

    class Smaller(LeastSquares):
        def parameter_groups(self):
            return super().parameter_groups()[:1]

    small = Smaller(make_engine())
    with pytest.raises(UserError, match="other trained parameters"):
        load_checkpoint(tmp_path, small, small.engine.backbone, build_optimizer(small, 0.1))
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"last\.safetensors"):
        make_trainer(checkpoints=tmp_path).resume()
    with pytest.raises(UserError, match=r"last\.safetensors"):
        read_events_offset(tmp_path)


def test_two_parameters_of_one_name_are_a_mistake_of_the_method():
    class Twice(LeastSquares):
        def parameter_groups(self):
            return [{"params": [("w", self.w), ("w", self.idle)], "weight_decay": 0.0}]

    with pytest.raises(ValueError, match="'w'"):
        named_trainable(Twice(make_engine()))


# The schedule.


def test_cosine_ends():
    assert cosine_lr(0, 100, 1e-3, 1e-5) == 1e-3
    assert cosine_lr(50, 100, 1e-3, 1e-5) == pytest.approx((1e-3 + 1e-5) / 2)
    assert cosine_lr(100, 100, 1e-3, 1e-5) == pytest.approx(1e-5)


def test_a_cosine_begins_anew_where_a_task_asks_for_it():
    config = TrainingConfig(epochs=5, lr=1e-3, min_lr=1e-5)
    rates = [learning_rate(step, 3, config, restart_epochs=2) for step in range(15)]
    two, one = ([cosine_lr(step, total, 1e-3, 1e-5) for step in range(total)] for total in (6, 3))
    assert rates == [*two, *two, *one]


def test_the_optimizer_forgets_where_the_rate_begins_anew():
    found = {}
    for restart in (0, 1, 2):
        trainer = make_trainer(CONFIG)
        trainer.task.optimisation = Optimisation(restart_epochs=restart)
        trainer.run()
        found[restart] = {int(state["step"]) for state in trainer.optimizer.state.values()}
    # Of three epochs one is behind the last restart.
    assert found == {0: {3 * trainer.steps}, 1: {trainer.steps}, 2: {trainer.steps}}


def test_optimizer_switches_gradients_on_for_its_parameters_alone():
    task = LeastSquares(make_engine())
    assert not task.engine.backbone.scale.requires_grad
    optimizer = build_optimizer(task, 0.1)
    assert task.engine.backbone.scale.requires_grad
    assert not task.frozen.requires_grad
    assert [(group["weight_decay"], group["lr_scale"], group["betas"], group["eps"]) for group in optimizer.param_groups] == [
        (0.0, 1.0, (0.9, 0.999), 1e-8),
        (0.1, 0.5, (0.9, 0.999), 1e-8),
    ]


def test_optimizer_leaves_empty_groups_out():
    class Bare(LeastSquares):
        def parameter_groups(self):
            return [{"params": [], "weight_decay": 0.0}, {"params": [("w", self.w)], "weight_decay": 0.0}]

    assert len(build_optimizer(Bare(make_engine()), 0.1).param_groups) == 1


# The code.


def test_one_step_is_one_short_function_in_the_order_of_the_work():
    tree = ast.parse(inspect.getsource(loop))
    step = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_step")
    assert step.end_lineno - step.lineno < 50
    work = ("task.step", "output.loss.backward", "engine.processes.average_gradients", "optimizer.step", "StepLog.of")
    calls = sorted((node.lineno, name) for node in ast.walk(step) if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in work)
    assert [name for _, name in calls] == list(work)
