"""Out of memory: micro-batches halve, the gradient stays what it was, and the run says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finelens.engine.microbatch import BufferSnapshot, MicroBatch, OutOfMemoryError, is_out_of_memory, until_it_fits
from finelens.errors import UserError
from finelens.images.view_config import ViewConfig
from finelens.methods.clip_svd import ClipSvd
from finelens.methods.registry import find_method
from finelens.protocol import Backbone, Hints
from finelens.training.checkpoint import named_trainable
from finelens.training.config import TrainingConfig
from finelens.training.loop import Hooks, Trainer
from tests.methods.tiny import Pictures, random_batch, random_heads, target_features, tiny_engine
from tests.toy import TUNING, fit_toy, pictures, quick

CPU_ERROR = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 999 bytes"
ERRORS = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_ERROR), MemoryError()]


def build(tiny_vit, method: str, options=None):
    engine = tiny_engine(tiny_vit)
    found = find_method(method)
    task = found.build(engine, random_heads(3), found.config_class(**(options or {})), TrainingConfig(epochs=1, batch_size=8), 0)
    return engine, task


def look(engine, task, store) -> None:
    """Prepare a task; one that learns from labels gets some for every picture."""
    few_shot = isinstance(task, ClipSvd)
    hints = Hints(torch.arange(len(store)), torch.arange(len(store)) % 3) if few_shot else None
    task.prepare(replace(target_features(engine, store), hints=hints))


def starve(monkeypatch, engine, capacity: int, error: BaseException, *, kept: bool = True) -> list[int]:
    """A tower that cannot take more than ``capacity`` images at once, with or without recomputation. Returns the sizes that it did take."""
    encode, taken = engine.backbone.encode_image, []
    held = [0]

    def limited(images, **given):
        # Without recomputation the activations of all earlier chunks of the step are still there.
        keeps = torch.is_grad_enabled() and not engine.micro.recompute and kept
        held[0] = held[0] + len(images) if keeps else 0
        if max(len(images), held[0]) > capacity:
            held[0] = 0
            raise error
        taken.append(len(images))
        return encode(images, **given)

    monkeypatch.setattr(engine.backbone, "encode_image", limited)
    return taken


def gradients(task, batch) -> dict[str, torch.Tensor]:
    named = named_trainable(task)
    for parameter in named.values():
        parameter.requires_grad_(True).grad = None
    task.step(batch, 0, 0).loss.backward()
    return {name: p.grad.clone() for name, p in named.items() if p.grad is not None}


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "python"])
def test_errors_of_every_allocator_are_known(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize("method", TUNING)
def test_micro_batches_give_the_gradient_of_the_whole_batch(tiny_vit, method):
    """Every method that trains the tower, its terms over the batch included: the loss sees the whole batch whatever the tower takes at once."""
    engine, task = build(tiny_vit, method)
    store = Pictures(8)
    look(engine, task, store)
    batch = random_batch(8, task.views.crops)
    before = BufferSnapshot(task)
    whole = gradients(task, batch)
    before.restore()
    engine.micro.size, engine.micro.recompute = 3, True
    parts = gradients(task, batch)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize("method", TUNING)
def test_a_run_short_of_memory_ends_like_one_with_plenty(tiny_vit, method, error, monkeypatch):
    pictures_, config = Pictures(12), TrainingConfig(epochs=2, batch_size=8, lr=1e-3)

    def trained(capacity: int | None):
        engine, task = build(tiny_vit, method)
        look(engine, task, pictures_)
        said: list[str] = []
        engine.micro.say = said.append
        with monkeypatch.context() as patch:
            taken = [] if capacity is None else starve(patch, engine, capacity, error)
            Trainer(task, engine, pictures_, config, ViewConfig(), seed=0).run()
        return task, engine, said, taken

    plenty, rich, silent, _ = trained(None)
    short, poor, said, taken = trained(3)
    assert silent == []
    assert said[0] == "out of memory: going on with micro-batches of 4; results stay the same up to rounding, a step takes longer"
    assert said[-1].startswith("out of memory: going on with micro-batches of 2;")
    assert max(taken) <= 3
    for (name, a), (_, b) in zip(named_trainable(plenty).items(), named_trainable(short).items(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5 * max(1.0, a.abs().max().item()), msg=name)
    # A failed attempt is not counted; the forward that is computed again is.
    assert poor.grad_forwards == rich.grad_forwards
    assert rich.no_grad_forwards < poor.no_grad_forwards <= rich.no_grad_forwards + rich.grad_forwards


def test_memory_that_runs_out_in_the_backward_pass(tiny_vit, monkeypatch):
    """By then the step has moved its memories on; the repeated step must start from where the first did."""
    pictures_, config = Pictures(8), TrainingConfig(epochs=1, batch_size=8, lr=1e-3)

    def trained(fail: int):
        engine, task = build(tiny_vit, "dpa")
        look(engine, task, pictures_)
        backward, left = torch.Tensor.backward, [fail]

        def sometimes(self, *args, **given):
            if left[0]:
                left[0] -= 1
                raise RuntimeError(CPU_ERROR)
            return backward(self, *args, **given)

        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "backward", sometimes)
            Trainer(task, engine, pictures_, config, ViewConfig(), seed=0).run()
        return task

    whole, repeated = trained(0), trained(2)
    assert whole.log_means.shape == repeated.log_means.shape == (1, 3)
    torch.testing.assert_close(repeated.log_means, whole.log_means, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(repeated.prototypes, whole.prototypes, rtol=1e-5, atol=1e-5)


def test_predicting_halves_too(tiny_vit, monkeypatch):
    engine, _ = build(tiny_vit, "dpa")
    pixels = random_batch(9, 0).weak
    expected = engine.encode_frozen(pixels).global_
    taken = starve(monkeypatch, engine, 2, ERRORS[1])
    torch.testing.assert_close(engine.encode_frozen(pixels).global_, expected)
    assert max(taken) == 2
    assert not engine.micro.recompute


def test_not_even_one_image_fits(tiny_vit, monkeypatch, tmp_path):
    engine, task = build(tiny_vit, "dpa")
    pictures_ = Pictures(8)
    task.prepare(target_features(engine, pictures_))
    trainer = Trainer(task, engine, pictures_, TrainingConfig(epochs=1, batch_size=8), ViewConfig(), seed=0, hooks=Hooks(checkpoints=tmp_path))
    starve(monkeypatch, engine, 0, ERRORS[1])
    with pytest.raises(UserError, match="out of memory in epoch 1, step 1, even with micro-batches of 1; the last checkpoint is intact"):
        trainer.run()


def test_an_update_that_does_not_fit_is_not_repeated(tiny_vit, monkeypatch):
    """A part of the parameters may have moved."""
    engine, task = build(tiny_vit, "dpa")
    pictures_, calls = Pictures(8), []
    task.prepare(target_features(engine, pictures_))
    trainer = Trainer(task, engine, pictures_, TrainingConfig(epochs=1, batch_size=8), ViewConfig(), seed=0)

    def step(*_):
        calls.append(1)
        raise ERRORS[0]

    monkeypatch.setattr(trainer.optimizer, "step", step)
    with pytest.raises(UserError, match="out of memory"):
        trainer.run()
    assert calls == [1]


def test_halving_ends():
    micro = MicroBatch(16)
    sizes = []
    while micro.halve(64, with_gradient=True):
        sizes.append(micro.size)
    assert sizes == [16, 8, 4, 2, 1]
    assert not MicroBatch(16).halve(1, with_gradient=False)


def test_other_errors_pass_and_nothing_is_undone():
    undone = []
    with pytest.raises(RuntimeError, match="shapes"):
        until_it_fits(lambda: _raise(RuntimeError("shapes")), lambda: True, lambda: undone.append(1))
    assert undone == []
    with pytest.raises(OutOfMemoryError):
        until_it_fits(lambda: _raise(MemoryError()), lambda: False, lambda: undone.append(1))
    assert undone == [1]


def _raise(error: BaseException):
    raise error


def test_the_run_says_and_logs_it(tiny_vit, monkeypatch, capsys):
    normalise, full = Backbone.normalise, []

    def limited(self, images):
        if torch.is_grad_enabled() and not full:
            full.append(1)
            raise RuntimeError(CPU_ERROR)
        return normalise(self, images)

    monkeypatch.setattr(Backbone, "normalise", limited)
    _, _, log = fit_toy(tiny_vit, "dpa", pictures(2), options=quick(epochs=1))
    warnings = [event["message"] for event in log.events if event["event"] == "warning"]
    assert len(warnings) == 1
    assert warnings[0].startswith("out of memory: going on with micro-batches of ")
    assert f"warning: {warnings[0]}" in capsys.readouterr().err
