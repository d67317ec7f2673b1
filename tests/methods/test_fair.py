"""FAIR: limiting cases, switches, gradients, state."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from finelens.core.options import from_mapping, to_plain
from finelens.errors import UserError
from finelens.methods import fair
from finelens.methods.fair.alignment import alignment_logits, class_logits, select_crops
from finelens.methods.fair.anchors import kmeans_anchors
from finelens.methods.fair.config import FairConfig
from finelens.methods.fair.pseudo_labels import ambiguity, assign
from finelens.methods.fair.task import Fair
from finelens.methods.microclip.pseudo_labels import multi_view_feature
from finelens.protocol import TargetFeatures
from finelens.training.config import TrainingConfig
from finelens.training.losses import log_batch_marginal, marginal_loss
from finelens.training.pseudo_labels import PseudoLabels, ranking, weighted_cross_entropy
from tests.methods.tiny import (
    DIM,
    Pictures,
    random_batch,
    random_heads,
    separating_rows,
    step_gradient,
    target_features,
    tiny_engine,
    train_steps,
    trainable_count,
    unit_rows,
    vit_b32_engine,
    whole_and_resumed,
)

B, M, C, E = 6, 5, 4, 16


def small(**options) -> FairConfig:
    return FairConfig(**{"crops": 4, "keep": 2, **options})


# Alignment score


def test_limit_of_equal_weights_is_mean_crop_scoring(engine):
    head = random_heads(C).descriptions
    options = small(crops=M, keep=M, crop_scale=0.0, eta=0.0, weighting=False, train_anchors=False, pseudo_label="las")
    weak, crops = unit_rows(20, DIM, seed=4), unit_rows(20, M, DIM, seed=5)
    pseudo = Fair(engine, head, options).pseudo_labels(weak, crops)
    scores = F.normalize(crops.mean(1), dim=-1) @ head.T
    assert len(scores.argmax(1).unique()) == C
    assert torch.equal(pseudo.labels, scores.argmax(1))
    assert torch.equal(pseudo.weights, torch.ones(20))
    torch.testing.assert_close(pseudo.posterior, (engine.backbone.logit_scale * crops.mean(1) @ head.T).softmax(-1))


def test_unselected_crops_at_scale_one_point_where_the_multi_view_composite_of_microclip_does():
    crops, reference, head = unit_rows(B, M, E, seed=0), unit_rows(B, E, seed=1), unit_rows(C, 1, E, seed=2)
    scores = alignment_logits(*select_crops(crops, reference, M, 1.0), head, 1.0)
    composite, _ = multi_view_feature(crops, reference)
    torch.testing.assert_close(F.normalize(scores, dim=-1), F.normalize(composite @ head[:, 0].T, dim=-1), atol=1e-6, rtol=0)


def test_selection_keeps_the_crops_nearest_to_the_image():
    reference = torch.tensor([[1.0, 0.0]])
    angles = torch.tensor([0.9, 0.1, 1.4, 0.3])
    crops = torch.stack([angles.cos(), angles.sin()], dim=-1)[None]  # (1, 4, 2)
    kept, weights = select_crops(crops, reference, 2, 10.0)
    assert torch.equal(kept[0], crops[0, [1, 3]])
    torch.testing.assert_close(weights[0], torch.softmax(10 * angles[[1, 3]].cos(), 0))


def test_several_anchors_score_between_their_mean_and_their_best():
    features, anchors = unit_rows(B, E, seed=0), unit_rows(C, 3, E, seed=1)
    cosines = torch.einsum("be,cje->bcj", features, anchors)
    score = class_logits(features, anchors, 20.0) / 20
    assert (score <= cosines.amax(-1)).all()
    assert (score >= cosines.mean(-1)).all()
    same = anchors[:, :1].repeat(1, 3, 1)
    torch.testing.assert_close(class_logits(features, same, 20.0), 20 * features @ anchors[:, 0].T)


def test_kmeans_anchors_find_the_groups_of_descriptions():
    centres = torch.eye(E)[:3]
    group = torch.tensor([0, 0, 0, 1, 1, 2])
    own = F.normalize(centres[group] + 0.01 * unit_rows(6, E, seed=0), dim=-1)
    few = unit_rows(2, E, seed=1)
    anchors = kmeans_anchors([own, few], 3, seed=0)
    assert anchors.shape == (2, 3, E)
    # The largest group comes first.
    assert torch.equal((anchors[0] @ centres.T).argmax(1), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(anchors.norm(dim=-1), torch.ones(2, 3))
    # Two descriptions, three anchors: one of them occurs twice.
    assert sorted((anchors[1] @ few.T > 0.999).sum(0).tolist()) == [1, 2]


# Pseudo-labels


def test_weights_by_hand():
    local = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    global_ = torch.tensor([[0.5, 0.4, 0.1], [0.7, 0.2, 0.1]])
    pseudo = assign(local.log(), global_.log(), target="mean", eta=2.0, weighting=True)
    assert pseudo.labels.tolist() == [0, 0]
    # Second image: means 0.45, 0.35, 0.2; the crops would rather have class 1.
    expected = torch.tensor([(1 - 0.35 / 0.55) ** 2, (0.2 / 0.5) * 1 * (1 - 0.35 / 0.45) ** 2])
    torch.testing.assert_close(pseudo.weights, expected)
    las = assign(local.log(), global_.log(), target="las", eta=0.0, weighting=True)
    assert las.labels.tolist() == [0, 1]
    torch.testing.assert_close(las.weights, torch.tensor([1.0, 0.2 / 0.7]))


def test_a_tie_of_two_classes_weighs_nothing_unless_eta_is_zero():
    tie = torch.tensor([[0.45, 0.45, 0.1]])
    assert ambiguity(tie, 1.0).item() == 0
    assert ambiguity(tie, 0.0).item() == 1


def test_weights_stay_within_zero_and_one():
    logits = 30 * torch.randn(2, 200, 7, generator=torch.Generator().manual_seed(0))
    weights = assign(logits[0], logits[1], target="mean", eta=1.0, weighting=True).weights
    assert weights.min() >= 0
    assert weights.max() <= 1
    assert weights.std() > 0.1


def test_a_single_class_is_labelled_with_full_weight():
    pseudo = assign(torch.randn(3, 1), torch.randn(3, 1), target="mean", eta=1.0, weighting=True)
    assert pseudo.weights.tolist() == [1, 1, 1]


# Switches, through a whole step


def step_log(engine, config: FairConfig, batch, start) -> dict[str, float]:
    return dict(Fair(engine, start, config).step(batch, 0, 0).log)


SWITCHES = {
    "selection off": {"keep": 4},
    "equal crop weights": {"crop_scale": 0.0},
    "weighting off": {"weighting": False},
    "no ambiguity factor": {"eta": 0.0},
    "labels by crops and whole image": {"pseudo_label": "mean"},
}


@pytest.mark.parametrize("case", SWITCHES)
def test_switches_change_the_pseudo_labels_and_nothing_else(engine, case):
    batch = random_batch(6, 4)
    start = separating_rows(engine, batch, C)
    base, changed = step_log(engine, small(), batch, start), step_log(engine, small(**SWITCHES[case]), batch, start)
    assert changed["marginal"] == base["marginal"]
    assert changed["pseudo_weight"] != base["pseudo_weight"]
    if case == "weighting off":
        assert changed["pseudo_weight"] == 1
    if case in ("weighting off", "no ambiguity factor"):
        assert changed["pseudo_confidence"] == base["pseudo_confidence"]
    else:
        assert changed["pseudo_confidence"] != base["pseudo_confidence"]


def test_without_crops_the_whole_image_is_scored_and_no_crop_is_encoded(engine):
    batch = random_batch(4, 0)
    task = Fair(engine, separating_rows(engine, batch, C), small(crops=0))
    assert task.views.crops == 0
    weak = engine.encode_frozen(batch.weak).global_
    torch.testing.assert_close(task.pseudo_labels(weak, None).posterior, task.logits(weak).softmax(-1))
    before = engine.no_grad_forwards
    task.step(batch, 0, 0)
    assert engine.no_grad_forwards - before == 4 * task.cost().no_grad_forwards == 4


def test_cost_is_what_a_step_encodes(engine):
    task = Fair(engine, random_heads(C).descriptions, small())
    before = engine.no_grad_forwards, engine.grad_forwards
    task.step(random_batch(3, 4), 0, 0)
    assert engine.no_grad_forwards - before[0] == 3 * task.cost().no_grad_forwards == 3 * 5
    assert engine.grad_forwards - before[1] == 3 * task.cost().grad_forwards == 3


def test_frozen_anchors_stay_and_trained_ones_move_with_the_labels(engine, folder):
    batch = random_batch(4, 4)
    start = separating_rows(engine, batch, C)
    frozen = Fair(engine, start, small(train_anchors=False))
    train_steps(frozen, batch, 2)
    assert torch.equal(frozen.anchors[:, 0], start)
    trained = Fair(tiny_engine(folder), start, small())
    norm = next(iter(trained.tuned.values()))
    before = norm.detach().clone()
    train_steps(trained, batch, 2)
    assert not torch.equal(trained.anchors[:, 0], start)
    assert not torch.equal(norm, before)
    weak = trained.engine.encode_frozen(batch.weak).global_
    # The labels come from the current anchors, not from where they started.
    assert not torch.equal(trained.pseudo_labels(weak, None).posterior, Fair(trained.engine, start, small()).pseudo_labels(weak, None).posterior)


def test_each_label_counts_by_its_weight(engine):
    task = Fair(engine, random_heads(C).descriptions, small(marginal="none"))
    strong, labels, weights = unit_rows(B, DIM, seed=0), torch.tensor([0, 1, 2, 3, 0, 1]), torch.linspace(0, 1, B)
    loss, log = task.loss(strong, PseudoLabels(labels, weights, torch.full((B, C), 1 / C)))
    log_p = (engine.backbone.logit_scale * strong @ task.anchors[:, 0].T).log_softmax(-1)
    torch.testing.assert_close(loss, -(weights * log_p[torch.arange(B), labels]).sum() / B)
    assert log["pseudo_weight"] == pytest.approx(0.5)


def test_length_of_the_anchors_says_nothing(engine):
    task = Fair(engine, random_heads(C).descriptions, small())
    weak, crops = unit_rows(B, DIM, seed=0), unit_rows(B, 4, DIM, seed=1)
    logits, las = task.logits(weak), task.las_logits(crops, weak)
    with torch.no_grad():
        task.anchors *= torch.linspace(0.5, 3, C)[:, None, None]
    torch.testing.assert_close(task.logits(weak), logits)
    torch.testing.assert_close(task.las_logits(crops, weak), las)


def test_marginal_options(engine):
    batch = random_batch(6, 4)
    start = separating_rows(engine, batch, C)
    strong = engine.encode_frozen(batch.strong).global_
    features = engine.encode_frozen(batch.weak)
    pseudo = PseudoLabels(torch.tensor([0, 0, 0, 0, 1, 2]), torch.ones(6), torch.full((6, C), 1 / C))
    losses = {}
    for kind in ("none", "uniform", "prior"):
        task = Fair(engine, start, small(marginal=kind, marginal_weight=2.0))
        task.prepare(TargetFeatures(features.global_, features.cls))
        losses[kind] = task.loss(strong, pseudo)[0]
        log_marginal = log_batch_marginal(task.logits(strong))
    expected_uniform = losses["none"] + 2 * -log_marginal.mean()
    torch.testing.assert_close(losses["uniform"], expected_uniform)
    torch.testing.assert_close(losses["prior"], losses["none"] + 2 * marginal_loss(log_marginal, task.class_prior.prior))
    assert (task.class_prior.prior - 1 / C).abs().max() > 0.01


def test_estimated_prior_follows_the_labels_of_the_epoch(engine):
    batch = random_batch(6, 4)
    task = Fair(engine, separating_rows(engine, batch, C), small(marginal="prior"))
    features = engine.encode_frozen(batch.weak)
    task.prepare(TargetFeatures(features.global_, features.cls))
    before = task.class_prior.prior.clone()
    task.step(batch, 0, 0)
    assert torch.equal(task.class_prior.prior, before)
    crops = engine.encode_frozen(batch.crops.flatten(0, 1)).global_.unflatten(0, (6, 4))
    torch.testing.assert_close(task.class_prior.posteriors, task.pseudo_labels(features.global_, crops).posterior)
    log = task.end_epoch(0)
    assert not torch.equal(task.class_prior.prior, before)
    assert log["prior_largest"] == task.class_prior.prior.max().item()


# Gradients


@pytest.mark.parametrize("anchors", [1, 3])
def test_gradients_of_each_loss_by_finite_differences(anchors):
    features = unit_rows(B, E, seed=0, dtype=torch.float64).requires_grad_()
    head = unit_rows(C, anchors, E, seed=1, dtype=torch.float64).requires_grad_()
    labels, weights = torch.tensor([0, 1, 2, 3, 0, 1]), torch.linspace(0.1, 1, B, dtype=torch.float64)
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)

    def logits(f, a):
        return class_logits(f, F.normalize(a, dim=-1), 10.0)

    assert gradcheck(lambda f, a: weighted_cross_entropy(logits(f, a), labels, weights), (features, head))
    assert gradcheck(lambda f, a: marginal_loss(log_batch_marginal(logits(f, a)), prior), (features, head))


def test_gradient_of_a_step_reaches_norms_and_anchors(folder):
    engine = tiny_engine(folder, torch.float64)
    batch = random_batch(4, 4)
    task = Fair(engine, separating_rows(engine, batch, C), small())
    for name in ("anchors", "visual.ln_post.weight", "visual.transformer.resblocks.0.ln_1.bias"):
        # The weights omega carry no gradient but move with the parameters; hold the labels fixed, as the loss does.
        weak = engine.encode_frozen(batch.weak).global_
        fixed = task.pseudo_labels(weak, None)
        task.pseudo_labels = lambda weak, crops, fixed=fixed: fixed
        automatic, numeric = step_gradient(task, batch, name, 5)
        del task.pseudo_labels
        assert automatic == pytest.approx(numeric, rel=1e-6, abs=1e-9)
        assert automatic != 0


def test_pseudo_labels_carry_no_gradient(engine):
    batch = random_batch(3, 4)
    task = Fair(engine, random_heads(C).descriptions, small())
    weak = engine.encode(batch.weak).global_.requires_grad_()
    pseudo = task.pseudo_labels(weak, weak[:, None].repeat(1, 4, 1))
    assert not pseudo.weights.requires_grad
    assert not pseudo.posterior.requires_grad


# What is trained, saved and predicted


def test_trainable_count_of_vit_b32():
    start = torch.zeros(102, 512, device="meta")
    assert trainable_count(Fair(vit_b32_engine(), start, FairConfig())) == 39_936 + 512 * 102
    assert trainable_count(Fair(vit_b32_engine(), start, FairConfig(anchors=3))) == 39_936 + 3 * 512 * 102
    assert trainable_count(Fair(vit_b32_engine(), start, FairConfig(train_anchors=False))) == 39_936


def test_only_anchors_decay(engine):
    groups = Fair(engine, random_heads(C).descriptions, small(), weight_decay=0.3).parameter_groups()
    assert {name: group["weight_decay"] for group in groups for name, _ in group["params"] if name in ("anchors", "visual.ln_post.weight")} == {
        "anchors": 0.3,
        "visual.ln_post.weight": 0.0,
    }
    assert [name for name, _ in groups[1]["params"]] == ["anchors"]


def test_logit_scale_is_the_models(engine):
    task = Fair(engine, random_heads(C).descriptions, small())
    images = random_batch(3, 0).weak
    base = task.predict_logits(images)["logits"]
    engine.backbone.logit_scale *= 2
    torch.testing.assert_close(task.predict_logits(images)["logits"], 2 * base)


def test_prediction_with_crops_is_the_mean_posterior_and_the_same_for_any_batch(engine):
    batch = random_batch(5, 0)
    task = Fair(engine, separating_rows(engine, batch, C), small(inference="las"))
    branches = task.predict_logits(batch.weak)
    assert set(branches) == {"logits", "global", "las"}
    mean = (branches["global"].softmax(-1) + branches["las"].softmax(-1)) / 2
    torch.testing.assert_close(branches["logits"].exp(), mean)
    assert not torch.allclose(branches["global"], branches["las"])
    alone = task.predict_logits(batch.weak[3:4])
    torch.testing.assert_close(alone["las"], branches["las"][3:4])


def test_prediction_state_suffices_to_predict_alike(engine):
    heads, images = random_heads(C), random_batch(3, 0).weak
    options = small(anchors=2, inference="las")
    task = Fair(engine, heads.descriptions, options, sentences=[unit_rows(4, DIM, seed=seed) for seed in range(C)], seed=3)
    task.prepare(target_features(engine, Pictures(4)))
    plain = from_mapping(FairConfig, to_plain(options), "method")
    rebuilt = fair.build(engine, heads, plain, TrainingConfig(), 0)
    result = rebuilt.load_state_dict(task.prediction_state(), strict=False)
    assert not result.unexpected_keys
    assert not set(result.missing_keys) & set(task.prediction_state())
    assert torch.equal(rebuilt.predict_logits(images)["logits"], task.predict_logits(images)["logits"])


def test_an_interrupted_run_ends_as_if_it_had_not_been(folder, tmp_path):
    pictures, config = Pictures(7), TrainingConfig(epochs=2, batch_size=4, lr=1e-3)

    def build() -> Fair:
        engine = tiny_engine(folder)
        return Fair(engine, separating_rows(engine, random_batch(4, 0), C), small(marginal="prior"))

    task, second = whole_and_resumed(build, pictures, config, tmp_path)
    for name, tensor in task.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name
    for name, parameter in task.tuned.items():
        assert torch.equal(second.tuned[name], parameter), name


def test_some_steps_lower_the_loss(engine):
    batch = random_batch(6, 4)
    # Labels come from the model that learns, and change in the first steps.
    losses = train_steps(Fair(engine, separating_rows(engine, batch, C), small()), batch, 14)
    assert losses[-1] < losses[0]


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 17}, "method.keep"),
        ({"crops": 4}, "method.keep"),
        ({"crops": 0, "inference": "las"}, "method.inference"),
        ({"anchors": 0}, "method.anchors"),
        ({"eta": -1.0}, "method.eta"),
        ({"crop_scale": math.inf}, "method.crop_scale"),
    ],
)
def test_impossible_options_are_refused_by_name(options, words):
    with pytest.raises(UserError, match=words):
        FairConfig(**options)


def test_several_anchors_without_description_features_are_refused(engine):
    task = Fair(engine, random_heads(C).descriptions, small(anchors=2))
    with pytest.raises(UserError, match=r"method\.anchors=2"):
        task.prepare(target_features(engine, Pictures(2)))


def test_ranking_is_one_only_where_the_scorer_agrees():
    probabilities = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    torch.testing.assert_close(ranking(probabilities, torch.tensor([0, 0])), torch.tensor([1.0, 0.25]))
