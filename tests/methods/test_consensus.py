"""Consensus on towers that know nothing: clusters are there, and nobody has said which cluster is which class."""

from __future__ import annotations

import torch

from finelens.images.batches import centre_batches
from finelens.images.decode import DecodeLimits
from finelens.images.load import load
from finelens.runs.fit import fit
from tests.toy import QUIET, pictures, prepare_toy


def test_a_random_tower_keeps_the_answers_of_zero_shot(backbone):
    config, prepared = prepare_toy(backbone, "consensus")
    store = load(pictures(), DecodeLimits(), QUIET).store
    fitted = fit(prepared, store, config, QUIET)
    _, views = next(iter(centre_batches(store, prepared.engine.backbone.preprocess, 64)))
    solver = fitted.model.task.solver
    # By neighbours alone it would have gone its own way.
    assert solver.agreement_ > solver.enough
    assert torch.equal(fitted.model.logits(views)["logits"].argmax(1), fitted.zero_shot_logits.argmax(1))
    assert any("the text hardly tells these images apart" in line for line in fitted.model.task.notes())
