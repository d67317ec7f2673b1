"""Solvers as methods: what they are fitted on, and what a saved model keeps of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from finelens.classes.heads import ClassHeads
from finelens.errors import UserError
from finelens.images.batches import centre_batches
from finelens.methods.registry import find_method
from finelens.protocol import ClassSet, Hints
from finelens.runs.fit import fit
from finelens.runs.prepare import assemble
from finelens.runs.resolve import make_config
from finelens.solvers.return_rule import ReturnRule
from tests.solvers.data import ALONE as SOLVERS
from tests.toy import QUIET
from tests.training.tasks import make_engine, make_store

HEADS = ClassHeads(*(F.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)), dim=-1) for seed in range(3)))
STORE = make_store(30)

each = pytest.mark.parametrize("name", SOLVERS)


def fitted(name, hints=None, **options):
    engine = make_engine()
    config = make_config("adapt", "(toy)", name, {"method": options}, backbone="mean", seed=0, device="cpu")
    prepared = assemble(config, engine, HEADS, ClassSet(tuple("abcd"), ("{}",), ((),) * 4))
    return fit(prepared, STORE, config, QUIET, hints=hints)


def views(engine):
    return torch.cat([batch for _, batch in centre_batches(STORE, engine.backbone.preprocess, 8)])


def seen(name, tokens):
    """What the solver is given of the images."""
    return [tokens.global_, tokens.cls] if "extra" in find_method(name).needs else tokens.global_


@each
@pytest.mark.parametrize("head", ["descriptions", "templates"])
def test_fits_the_centred_features_to_the_chosen_head(name, head):
    result = fitted(name, head=head)
    engine = make_engine()
    pixels = views(engine)
    x = seen(name, engine.centre(engine.features([pixels])))
    solver = SOLVERS[name]().fit(x, prototypes=getattr(HEADS, head), logit_scale=10.0)
    torch.testing.assert_close(result.model.logits(pixels)["logits"], solver.predict_log_proba(x))


@each
def test_hints_reach_the_solver(name):
    hints = Hints(torch.arange(9), torch.arange(9) % 5 - 1)
    engine = make_engine()
    pixels = views(engine)
    x = seen(name, engine.centre(engine.features([pixels])))
    solver = SOLVERS[name]().fit(x, prototypes=HEADS.descriptions, logit_scale=10.0, hints=hints)
    torch.testing.assert_close(fitted(name, hints).model.logits(pixels)["logits"], solver.predict_log_proba(x))


@each
def test_unadapted_model_has_no_centre(name):
    result = fitted(name)
    pixels = views(result.model.engine)
    expected = 10 * make_engine().encode_frozen(pixels).global_ @ HEADS.templates.T
    torch.testing.assert_close(result.zero_shot_logits, expected)
    torch.testing.assert_close(result.model.zero_shot_logits(pixels)["templates"], expected)


@each
def test_state_dict_is_the_model(name):
    model = fitted(name).model
    pixels = views(model.engine)
    method = find_method(name)
    fresh = method.build(model.engine, HEADS, method.config_class(), model.training, 0)
    fresh.load_state_dict(model.task.state_dict())
    assert torch.equal(fresh.predict_logits(pixels)["logits"], model.task.predict_logits(pixels)["logits"])
    assert fresh.state_dict().keys() == set(SOLVERS[name].state_names)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("stata", "anchor", 0),
        ("stata", "neighbours", 0),
        ("transclip", "temperature", -1),
        ("gda-em", "max_iter", 0),
        ("zlap", "alpha", 1),
        ("ot", "prior", "even"),
        ("ot", "prior", [1, 0, 1, 1]),
        ("ot", "head", "weighted"),
        ("inmap", "prior", [1, -1, 1, 1]),
        ("inmap", "softness", 0),
        ("joint-gmm", "prior", "even"),
        ("joint-gmm", "extra", ["dino"]),
        ("joint-gmm", "anchor", -1),
    ],
)
def test_unusable_options_are_named(name, option, value):
    with pytest.raises(UserError, match=f"method.{option}"):
        fitted(name, **{option: value})


def test_given_prior_reaches_the_solver():
    result = fitted("ot", prior=[0.7, 0.1, 0.1, 0.1])
    mean = result.model.logits(views(result.model.engine))["logits"].softmax(1).mean(0)
    torch.testing.assert_close(mean, torch.tensor([0.7, 0.1, 0.1, 0.1]), atol=1e-3, rtol=0)


def test_joint_mixture_without_further_views_sees_the_first_alone():
    result = fitted("joint-gmm", extra=[])
    engine = make_engine()
    pixels = views(engine)
    x = engine.centre(engine.features([pixels])).global_
    solver = SOLVERS["joint-gmm"]().fit(x, prototypes=HEADS.descriptions, logit_scale=10.0)
    torch.testing.assert_close(result.model.logits(pixels)["logits"], solver.predict_log_proba(x))


def test_few_shot_analysis_needs_hints():
    with pytest.raises(UserError, match="--hints"):
        fitted("gda")
    result = fitted("gda", Hints(torch.arange(8), torch.arange(8) % 4))
    assert torch.isfinite(result.model.logits(views(result.model.engine))["logits"]).all()


def returned(result, pixels, hints=None):
    """Answers of the same solver without the rule, and with the rule learned beside it."""
    engine, task = result.model.engine, result.model.task
    x = engine.encode_frozen(pixels).global_
    text = (engine.backbone.logit_scale * x @ HEADS.descriptions.T).softmax(1)
    counted = torch.ones(len(x), dtype=torch.bool)
    if hints is not None:
        text[hints.index[hints.label >= 0]] = F.one_hot(hints.label[hints.label >= 0], 4).float()
        counted[hints.index[hints.label < 0]] = False
    p = fitted(result.model.method, hints).model.task.target_log_proba.exp()
    rule = ReturnRule.learn(x[counted], text[counted], p[counted], share=0.7, chunk_size=1024)
    torch.testing.assert_close(rule.shares, task.return_shares)
    return rule, x, text, p


@each
def test_the_return_rule_is_a_filter_on_any_solver(name):
    result = fitted(name, return_rule=0.7)
    pixels = views(result.model.engine)
    rule, x, text, p = returned(result, pixels)
    torch.testing.assert_close(result.model.task.target_log_proba.exp(), rule.apply(x, text, p, chunk_size=1024)[0])
    new = fitted(name).model.logits(pixels)["logits"].softmax(1)
    torch.testing.assert_close(result.model.logits(pixels)["logits"].softmax(1), rule.apply(x, text, new, chunk_size=1024)[0])
    said = f"{100 * float(rule.apply(x, text, p, chunk_size=1024)[1].mean()):.1f} % of the probability went back to the class that the text names"
    assert said in result.model.task.notes()


def test_a_hinted_image_keeps_its_class_under_the_return_rule_and_one_of_no_class_teaches_nothing():
    hints = Hints(torch.arange(9), torch.arange(9) % 5 - 1)
    result = fitted("joint-gmm", hints, return_rule=0.7)
    returned(result, views(result.model.engine), hints)
    named = hints.label >= 0
    assert torch.equal(result.model.task.target_log_proba.argmax(1)[hints.index[named]], hints.label[named])


def test_a_model_keeps_its_returns():
    model = fitted("stata", return_rule=1.0).model
    pixels = views(model.engine)
    method = find_method("stata")
    fresh = method.build(model.engine, HEADS, method.config_class(return_rule=1.0), model.training, 0)
    fresh.load_state_dict(model.task.state_dict())
    assert torch.equal(fresh.predict_logits(pixels)["logits"], model.task.predict_logits(pixels)["logits"])
    with pytest.raises(UserError, match=r"method\.return_rule must be between 0 and 1"):
        method.config_class(return_rule=1.5)
