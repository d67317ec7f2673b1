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
    return [tokens.global_, tokens.cls] if name in ("joint-gmm", "consensus") else tokens.global_


@each
@pytest.mark.parametrize("head", ["descriptions", "templates"])
def test_fits_the_centred_features_to_the_chosen_head(name, head):
    result = fitted(name, head=head)
    engine = make_engine()
    pixels = views(engine)
    x = seen(name, engine.centre(engine.encode_frozen(pixels)))
    solver = SOLVERS[name]().fit(x, prototypes=getattr(HEADS, head), logit_scale=10.0)
    torch.testing.assert_close(result.model.logits(pixels)["logits"], solver.predict_log_proba(x))


@each
def test_hints_reach_the_solver(name):
    hints = Hints(torch.arange(9), torch.arange(9) % 5 - 1)
    engine = make_engine()
    pixels = views(engine)
    x = seen(name, engine.centre(engine.encode_frozen(pixels)))
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
    x = engine.centre(engine.encode_frozen(pixels)).global_
    solver = SOLVERS["joint-gmm"]().fit(x, prototypes=HEADS.descriptions, logit_scale=10.0)
    torch.testing.assert_close(result.model.logits(pixels)["logits"], solver.predict_log_proba(x))


def test_few_shot_analysis_needs_hints():
    with pytest.raises(UserError, match="--hints"):
        fitted("gda")
    result = fitted("gda", Hints(torch.arange(8), torch.arange(8) % 4))
    assert torch.isfinite(result.model.logits(views(result.model.engine))["logits"]).all()
