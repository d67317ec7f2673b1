"""Consensus as a teacher of the tower: its labels, the decision about the student, and its limits."""

from __future__ import annotations

import pytest
import torch

from finelens.errors import UserError
from finelens.images.batches import centre_batches
from finelens.images.decode import DecodeLimits
from finelens.images.load import load
from finelens.methods.consensus_tuned import CONFIG, Signals, signals_of
from finelens.runs.fit import fit
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
    # The views are those of the fit, which the sizes are of; the student's were its last weak views.
    assert float(taught.square().mean().sqrt()) == pytest.approx(float(size), rel=1e-3)
    assert float(own.square().mean().sqrt()) == pytest.approx(float(other), rel=0.2)


def test_the_decision_is_said_and_logged(student):
    model, _, log = student
    (event,) = [event for event in log.events if event["event"] == "decision"]
    assert event["message"] == model.task.notes()[0]
    assert event["message"].startswith("the student answers beside its teacher (method.student=always): both name the same class for ")


def test_labels_are_those_of_both_and_count_less_where_they_differ(student):
    task = student[0].task
    task.taught = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]])
    features = torch.nn.functional.normalize(torch.randn(2, task.anchors.shape[1], generator=torch.Generator().manual_seed(0)), dim=1)
    own = task.logits(features).softmax(1).detach()
    index = torch.tensor([1, 0])
    pseudo = task.pseudo_labels(index, features)
    mean = (own + task.taught[index]) / 2
    torch.testing.assert_close(pseudo.posterior, mean)
    for i, (image, label) in enumerate(zip(index, mean.argmax(1), strict=True)):
        expected = own[i, label] / own[i].max() * task.taught[image, label] / task.taught[image].max()
        torch.testing.assert_close(pseudo.weights[i], expected)


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
    config = CONFIG(neighbours=7, teacher_share=0.3)
    assert config.new_solver(0).neighbours == 7
    for wrong, words in (({"teacher_share": 2.0}, "teacher_share"), ({"extra": ("a.npy",)}, r"method\.extra"), ({"neighbours": 0}, "neighbours")):
        with pytest.raises(UserError, match=words):
            CONFIG(**wrong)
