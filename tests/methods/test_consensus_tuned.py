"""Consensus as a teacher of the tower: its labels, the decision about the student, and its limits."""

from __future__ import annotations

import pytest
import torch

from finelens.errors import UserError
from finelens.images.batches import centre_batches
from finelens.images.decode import DecodeLimits
from finelens.images.load import load
from finelens.methods.consensus_tuned import CONFIG, LESSON, Signals, signals_of
from finelens.protocol import Batch, Cost, Hints, TargetFeatures
from finelens.runs.fit import fit
from finelens.storage.cache_place import LIMIT_VARIABLE
from finelens.training.loop import Hooks
from tests.toy import QUIET, Log, pictures, prepare_toy, quick


def run(backbone, method="consensus-tuned", log=None, **options):
    training = quick() if method == "consensus-tuned" else {"training": {"precision": "float32"}}
    config, prepared = prepare_toy(backbone, method, options={**training, "method": options})
    store = load(pictures(), DecodeLimits(), QUIET).store
    fitted = fit(prepared, store, config, QUIET, Hooks(run=log))
    return fitted.model, next(iter(centre_batches(store, prepared.engine.backbone.preprocess, 64)))[1]


@pytest.fixture(scope="module")
def student(tiny_vit):
    log = Log()
    return *run(tiny_vit, log=log, student="always"), log


def test_without_its_student_it_answers_as_consensus(tiny_vit):
    model, views = run(tiny_vit, student="never")
    solver, _ = run(tiny_vit, "consensus")
    # The tower has moved, and the teacher looks through the one of before.
    moved = [(after.detach() - model.base[name]).abs().max() for name, after in model.engine.backbone.adapted("norm").items()]
    assert max(moved) > 1e-5
    torch.testing.assert_close(model.logits(views)["logits"], solver.logits(views)["logits"])


def test_the_answer_is_the_mean_of_both_at_one_scale(student):
    model, views, _ = student
    found = model.logits(views)
    taught, own = (found[name] - found[name].mean(1, keepdim=True) for name in ("teacher", "student"))
    size, other = model.task.sizes
    torch.testing.assert_close(found["logits"], (taught + own * size / other) / 2)


def test_the_student_is_consensus_on_what_the_tuned_tower_sees(student):
    model, views, _ = student
    task = model.task
    seen = task.engine.encode_each(views)
    solver = task.config.new_solver(0)
    answers = solver.fit_predict_proba([seen.global_, seen.cls], prototypes=task.text, logit_scale=task.engine.backbone.logit_scale)
    torch.testing.assert_close(task.student.target_log_proba.exp(), answers, atol=1e-5, rtol=1e-4)


def test_what_the_student_answers_after_a_lesson_is_taught_in_the_next(student):
    model, views, _ = student
    task = model.task
    taught, before = task.taught.clone(), task.target
    assert [epoch for epoch in range(6) if task.looks_after(epoch)] == [1, 3, 5]
    seen = task.engine.encode_each(views)
    task.look(TargetFeatures(seen.global_, seen.cls))
    torch.testing.assert_close(task.target, task.student.target_log_proba.exp().to(task.target))
    assert (task.target - before).abs().max() > 1e-3
    torch.testing.assert_close(task.taught, taught)


def test_a_lesson_costs_a_look_at_all_images(tiny_vit, monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    counted = {}
    for epochs in (2, 4):
        config, prepared = prepare_toy(tiny_vit, "consensus-tuned", options=quick(epochs=epochs))
        store = load(pictures(), DecodeLimits(), QUIET).store
        assert prepared.task.cost() == Cost(no_grad_forwards=0, grad_forwards=1, after=epochs // LESSON)
        fit(prepared, store, config, QUIET)
        counted[epochs] = prepared.engine.no_grad_forwards, prepared.engine.grad_forwards
    images = len(pictures())
    assert counted[4][0] - counted[2][0] == images
    assert [grad for _, grad in counted.values()] == [2 * images, 4 * images]


def test_the_decision_is_said_and_logged(student):
    model, _, log = student
    (event,) = [event for event in log.events if event["event"] == "decision"]
    assert event["message"] == model.task.notes()[0]
    assert event["message"].startswith("the student answers beside its teacher (method.student=always): both name the same class for ")


def test_a_step_is_the_cross_entropy_with_the_posterior_and_with_what_a_person_said(student):
    model, views, _ = student
    task = model.task
    batch = Batch(torch.tensor([2, 0]), centre=views[[2, 0]])
    features, taught = task.engine.encode_frozen(batch.centre).global_, task.target[[2, 0]]
    log_q = (task.engine.backbone.logit_scale * features @ task.text.T).log_softmax(1)
    torch.testing.assert_close(task.step(batch, 0, 0).loss.detach(), -(taught * log_q).sum(1).mean())
    task.hints.start(Hints(torch.tensor([2]), torch.tensor([1])))
    expected = -(log_q[0, 1] + (taught[1] * log_q[1]).sum()) / 2
    torch.testing.assert_close(task.step(batch, 0, 0).loss.detach(), expected)
    task.hints.start(Hints(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)))


def test_a_tower_that_the_last_step_broke_is_refused_with_the_remedy(tiny_vit):
    training = {"precision": "float32", "epochs": 1, "batch_size": 64, "lr": 1e30}
    config, prepared = prepare_toy(tiny_vit, "consensus-tuned", options={"training": training})
    store = load(pictures(), DecodeLimits(), QUIET).store
    with pytest.raises(UserError, match=r"after the training the features of \d+ of \d+ images are not finite; start again with a lower training.lr"):
        fit(prepared, store, config, QUIET)


NEAR = torch.tensor([[1], [0], [3], [2], [5], [4]])
TEACHER = torch.tensor([0, 0, 1, 1, 2, 0])


@pytest.mark.parametrize(
    ("both", "student", "good"),
    [
        ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], True),
        ([0, 0, 1, 1, 2, 0], [0, 0, 1, 1, 2, 0], True),
        # Neighbours fall out with each other; the classes become fewer; the student goes its own way.
        ([0, 1, 1, 2, 2, 0], [0, 1, 1, 2, 2, 0], False),
        ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], False),
        ([0, 0, 1, 1, 2, 2], [1, 1, 2, 2, 0, 2], False),
    ],
)
def test_a_student_is_taken_for_what_it_keeps(both, student, good):
    assert signals_of(TEACHER, torch.tensor(student), torch.tensor(both), NEAR, 3).good is good


def test_signals_are_right():
    found = signals_of(TEACHER, torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 0, 1, 1, 2, 2]), NEAR, 3)
    assert found.same == pytest.approx(4 / 6)
    # Four of six agree, and (9 + 4 + 1) / 36 would by chance.
    assert found.teacher == pytest.approx((4 / 6 - 14 / 36) / (1 - 14 / 36))
    assert (found.both, found.varied) == (pytest.approx(1), pytest.approx(3))
    assert str(Signals(0.9, 0.5, 0.6, 9.0, 9.5)).startswith("both name the same class for 90 % of the photographs, neighbours agree by 0.60 (0.50")


def test_options_are_those_of_the_teacher_and_its_own():
    config = CONFIG(neighbours=7)
    assert config.new_solver(0).neighbours == 7
    for wrong, words in (({"extra": ("a.npy",)}, r"method\.extra"), ({"neighbours": 0}, "neighbours"), ({"lesson": 0}, r"method\.lesson")):
        with pytest.raises(UserError, match=words):
            CONFIG(**wrong)
