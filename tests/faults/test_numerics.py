"""Numbers that go wrong: each is detected, named, and handled by a stated rule or stopped with what is needed to look into it."""

from __future__ import annotations

import json
import math

import pytest
import torch

from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.classes.heads import ClassHeads
from finelens.core.console import Console
from finelens.engine.device import Precision
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.evaluation.collapse import pseudo_label_warning
from finelens.images.view_config import ViewConfig
from finelens.methods.microclip import ncut
from finelens.methods.registry import find_method
from finelens.runs.alarms import check_image_features, check_text_features
from finelens.storage.tensors import load_tensors
from finelens.training.checkpoint import Position, load_checkpoint, save_checkpoint
from finelens.training.config import TrainingConfig
from finelens.training.failure import first_not_finite, save_failure
from finelens.training.loop import Hooks, Trainer
from tests.methods.tiny import random_batch, tiny_engine, unit_rows
from tests.toy import CLASSES, Log, fit_toy, pictures, quick
from tests.training.tasks import LeastSquares, make_engine, make_store

CONFIG = TrainingConfig(epochs=3, batch_size=4, lr=0.05, min_lr=0.001)


def make_trainer(folder, task_class=LeastSquares) -> Trainer:
    engine = make_engine()
    hooks = Hooks(checkpoints=folder / "checkpoint", failures=folder / "failure")
    return Trainer(task_class(engine), engine, make_store(), CONFIG, ViewConfig(), seed=7, hooks=hooks)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_loss_that_is_not_finite_stops_with_all_that_is_needed(tmp_path, value):
    class Poisoned(LeastSquares):
        def step(self, batch, epoch, step_in_epoch):
            output = super().step(batch, epoch, step_in_epoch)
            # Added, not multiplied: zero times infinity is NaN.
            return type(output)(output.loss + (value if len(self.seen) == 5 else 0.0), output.log)

    trainer = make_trainer(tmp_path, Poisoned)
    with pytest.raises(UserError) as stop:
        trainer.run()
    assert str(stop.value).startswith(f"the loss became {value} in epoch 2, step 2; the last checkpoint is intact. Try a lower training.lr")
    assert str(stop.value).endswith(f"The batch and the state before it are in {tmp_path / 'failure'}")
    said = json.loads((tmp_path / "failure" / "failure.json").read_text())
    index = trainer.task.seen[-1][2]
    assert (said["epoch"], said["step"], said["seed"]) == (1, 1, 7)
    assert said["reason"] == f"the loss became {value}"
    assert said["sample_ids"] == [trainer.store.ids[i] for i in index]
    saved = load_tensors(tmp_path / "failure" / "state.safetensors")
    assert saved["batch.index"].tolist() == index
    assert saved["batch.weak"].shape == (4, 3, 8, 8)
    assert torch.equal(saved["parameter.w"], trainer.task.w.detach())
    # The step can be repeated from it: the same batch and state give the same loss.
    again = LeastSquares(make_engine())
    with torch.no_grad():
        again.w.copy_(saved["parameter.w"])
        again.engine.backbone.scale.copy_(saved["parameter.scale"])
        cls = again.engine.encode_frozen(saved["batch.weak"]).cls
        assert math.isfinite((cls - again.w).square().mean().item())
    resumed = make_trainer(tmp_path)
    resumed.resume()
    assert (resumed.position.epoch, resumed.position.step) == (1, 0)


def test_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path):
    """sqrt at 0 has a finite value and an infinite slope: the loss looks well, and the next step would be lost."""

    class Steep(LeastSquares):
        def step(self, batch, epoch, step_in_epoch):
            output = super().step(batch, epoch, step_in_epoch)
            return type(output)(output.loss + ((self.w - self.w.detach()).sum().sqrt() if len(self.seen) == 3 else 0.0), output.log)

    trainer = make_trainer(tmp_path, Steep)
    with pytest.raises(UserError, match=r"the gradient of w is not finite in epoch 1, step 3; .*failure"):
        trainer.run()
    assert torch.isfinite(trainer.task.w).all()
    assert (tmp_path / "failure" / "state.safetensors").exists()


def test_a_failure_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "failure").write_text("a file in the way")
    engine = make_engine()
    said = save_failure(tmp_path / "failure", LeastSquares(engine), engine.backbone, random_batch(2, 0), ["a", "b"], {})
    assert said.startswith("The batch could not be saved (")


def test_the_first_bad_tensor_is_named():
    good, huge = torch.ones(3), torch.full((3,), 1e30)
    assert first_not_finite({}) is None
    # Squares of these would overflow; the numbers themselves are finite.
    assert first_not_finite({"good": good, "huge": huge, "none": torch.zeros(0)}) is None
    assert first_not_finite({"good": good, "a": torch.tensor([1.0, math.nan]), "b": torch.tensor([math.inf])}) == "a"
    assert first_not_finite({"none": torch.zeros(0), "b": torch.tensor([-math.inf])}) == "b"


# Collapse.


def test_collapse_is_said_in_the_loop(tiny_vit, monkeypatch, capsys):
    method = find_method("dpa")
    task_class = type(method.build(tiny_engine(tiny_vit), ClassHeads(*[unit_rows(4, 48, seed=1)] * 3), method.config_class(), CONFIG, 0))
    step = task_class.step

    def one_class(self, batch, epoch, step_in_epoch):
        output = step(self, batch, epoch, step_in_epoch)
        return type(output)(output.loss, output.log, torch.full_like(output.pseudo_labels, rare))

    _, plain, log = fit_toy(tiny_vit, "dpa", pictures(3), options=quick(epochs=1))
    rare = int(torch.bincount(plain.zero_shot_logits.argmax(1), minlength=4).argmin())
    monkeypatch.setattr(task_class, "step", one_class)
    _, _, log = fit_toy(tiny_vit, "dpa", pictures(3), options=quick(epochs=2))
    warnings = [event for event in log.events if event["event"] == "warning"]
    assert [event["epoch"] for event in warnings] == [0, 1]
    assert warnings[0]["message"].startswith(f"12 of 12 pseudo-labels are class {CLASSES[rare]!r} (unadapted model: ")
    assert capsys.readouterr().err.count("training is collapsing") == 2
    # Before the epoch's line, so that a run resumed after it neither repeats nor loses the warning.
    assert [event["event"] for event in log.events] == ["warning", "epoch"] * 2


def test_collapse_alarm_knows_what_was_there_before():
    names = ("a", "b", "c")
    assert pseudo_label_warning([1, 9], [4, 3, 3], names) is not None
    assert pseudo_label_warning([1, 9], [1, 6, 3], names) is None
    assert pseudo_label_warning([5, 4, 1], [2, 4, 4], names) is not None
    assert pseudo_label_warning([4, 3, 3], [4, 3, 3], names) is None
    assert pseudo_label_warning([], [4, 3, 3], names) is None
    assert pseudo_label_warning([10], [5, 5], ("a", "b")) is None


def test_pseudo_labels_are_counted_across_an_interruption(tmp_path):
    trainer = make_trainer(tmp_path)
    position = Position(epoch=1, step=2, images=8, sums={"loss": 0.5}, pseudo_labels=(3, 0, 5))
    save_checkpoint(tmp_path, trainer.task, trainer.engine.backbone, trainer.optimizer, position, 99)
    assert load_checkpoint(tmp_path, trainer.task, trainer.engine.backbone, trainer.optimizer) == position


# Features.


def test_features_of_zero_norm_are_said(capsys):
    features = unit_rows(5, 8, seed=0)
    check_image_features(features, Console())
    assert capsys.readouterr().err == ""
    features[1:3] = 0
    check_image_features(features, Console())
    assert "the features of 2 of 5 images are zero" in capsys.readouterr().err


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_refused(value):
    features = unit_rows(5, 8, seed=0)
    features[3, 2] = value
    with pytest.raises(UserError, match=r"the features of 1 of 5 images are not finite; use --set training\.precision=float32"):
        check_image_features(features, Console())


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_class_without_a_text_feature_is_named(value):
    good, bad = unit_rows(3, 8, seed=0), unit_rows(3, 8, seed=0)
    bad[1] = value
    check_text_features(ClassHeads(good, good, good), ("a", "b", "c"), Console())
    with pytest.raises(UserError, match="the text features of class 'b' are zero or not finite"):
        check_text_features(ClassHeads(good, bad, good), ("a", "b", "c"), Console())


def test_bfloat16_overflow_is_refused_by_name(tiny_vit):
    """Weights at the end of the float range: the tower's numbers run over and become NaN."""
    backbone = OpenClipBackbone.from_folder(tiny_vit)
    with torch.no_grad():
        for parameter in backbone.tunable("all").values():
            if parameter.ndim >= 2:
                parameter.mul_(3e38)
    engine = Engine(backbone, torch.device("cpu"), Precision(torch.bfloat16, "test"))
    features = engine.features([random_batch(3, 0).weak])
    assert not torch.isfinite(features.global_).all()
    with pytest.raises(UserError, match=r"of 3 images are not finite; use --set training\.precision=float32"):
        check_image_features(features.global_, Console())


# NCut.


def test_eigen_solver_that_does_not_converge_falls_back_to_all_patches(monkeypatch):
    tokens = torch.randn(4, 12, 8, generator=torch.Generator().manual_seed(0))
    expected = ncut.ncut_saliency(tokens)
    solve, number = torch.linalg.eigh, iter(range(100))

    def sometimes(matrix):
        if matrix.ndim == 3 or next(number) % 4 == 2:
            raise torch.linalg.LinAlgError("linalg.eigh: (Batch element 2): The algorithm failed to converge")
        return solve(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", sometimes)
    found = ncut.ncut_saliency(tokens)
    assert found.fallback[2]
    assert found.mask[2].all()
    others = [0, 1, 3]
    assert torch.equal(found.mask[others], expected.mask[others])
    assert torch.equal(found.fallback[others], expected.fallback[others])
    released = ncut.ncut_saliency(tokens, released_code=True)
    assert released.fallback.tolist() == [False, False, True, False]
    assert released.mask[2].all()


def test_tokens_that_are_not_finite_do_not_reach_the_solver():
    tokens = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0))
    tokens[1] = math.nan
    found = ncut.ncut_saliency(tokens)
    assert found.fallback.tolist() == [False, True]
    assert torch.isfinite(found.vector).all()


def test_events_of_a_quiet_run_have_no_warnings(tiny_vit):
    log: Log
    _, _, log = fit_toy(tiny_vit, "dpa", pictures(2), options=quick(epochs=1))
    assert {event["event"] for event in log.events} == {"epoch"}


def test_classes_with_the_same_vector_are_named(capsys):
    head = unit_rows(200, 8, seed=0)
    head[7], head[150] = head[3], head[3] * (1 - 1e-7)
    names = [f"class {c}" for c in range(200)]
    check_text_features(ClassHeads(head, head, head), names, Console())
    said = capsys.readouterr().err
    assert "'class 3' and 'class 7' and 'class 150'" in said
    assert said.count("class") < 8
    check_text_features(ClassHeads(head[:7], head[:7], head[:7]), names[:7], Console())
    assert capsys.readouterr().err == ""
