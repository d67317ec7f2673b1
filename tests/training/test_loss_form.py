"""InfoLOOB and geodesic mixtures: values by hand, limits, and what methods make of the switch."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from finelens.errors import UserError
from finelens.images.load import decode_limits, load
from finelens.methods.clip_svd import ClipSvd
from finelens.methods.consensus_tuned import ConsensusTuned
from finelens.methods.coop.task import Coop
from finelens.methods.dpa.task import Dpa
from finelens.methods.fair.task import Fair
from finelens.methods.lafter.task import Lafter
from finelens.methods.mars import Mars
from finelens.methods.microclip.task import MicroClip
from finelens.methods.nola.task import Nola
from finelens.methods.registry import METHODS
from finelens.methods.upl import Upl
from finelens.protocol import Hints
from finelens.runs.fit import fit
from finelens.training.loop import Hooks
from finelens.training.loss_form import LossForm, infoloob, m2_mix, slerp
from tests.methods.tiny import unit_rows
from tests.toy import QUIET, Log, pictures, prepare_toy, quick


def test_infoloob_leaves_the_positive_out():
    logits, labels = torch.tensor([[2.0, 1.0, 0.0], [0.0, 5.0, 1.0]]), torch.tensor([0, 1])
    expected = [math.log(math.e + 1) - 2, math.log(1 + math.e) - 5]
    assert infoloob(logits, labels).tolist() == pytest.approx(expected)
    # Cross-entropy is its soft plus: both fall together, and only one of them stops falling.
    torch.testing.assert_close(F.cross_entropy(logits, labels, reduction="none"), F.softplus(infoloob(logits, labels)))
    assert infoloob(torch.ones(2, 1), torch.zeros(2, dtype=torch.int64)).tolist() == [0, 0]


def test_slerp_walks_the_arc():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for share in (0.0, 0.25, 1.0):
        angle = math.pi / 2 * (1 - share)
        expected = torch.tensor([[math.cos(angle), math.sin(angle)]])
        torch.testing.assert_close(slerp(a, b, torch.tensor([share])), expected, atol=1e-6, rtol=0)
    many, other = unit_rows(5, 8, seed=1), unit_rows(5, 8, seed=2)
    torch.testing.assert_close(slerp(many, other, torch.rand(5)).norm(dim=1), torch.ones(5))
    # Two ends that are one point: neither a value nor a gradient is lost.
    same = many.clone().requires_grad_()
    point = slerp(same, many, torch.full((5,), 0.3))
    torch.testing.assert_close(point, many)
    point.sum().backward()
    assert torch.isfinite(same.grad).all()


def test_mixtures_at_either_end_are_the_usual_contrast():
    images, texts, scale = unit_rows(4, 8, seed=1), unit_rows(4, 8, seed=2), 5.0
    labels = torch.arange(4)
    cosines = scale * images @ texts.T
    # At share 0 the mixtures are the texts: images against texts is the contrastive loss of CLIP.
    positive = cosines.diagonal()
    among_texts = scale * texts @ texts.T
    found = m2_mix(images, texts, labels, torch.zeros(4), scale)
    other = among_texts.masked_fill(torch.eye(4, dtype=torch.bool), -torch.inf)
    by_texts = torch.logaddexp(positive, other.logsumexp(1)) - positive
    torch.testing.assert_close(found, (F.cross_entropy(cosines, labels) + by_texts.mean()) / 2)
    # Pairs of one class are no negatives of each other: with one class alone nothing is left to tell apart.
    alike = m2_mix(images, texts[:1].expand(4, -1), torch.zeros(4, dtype=torch.int64), torch.full((4,), 0.5), scale)
    assert alike.item() == pytest.approx(0, abs=1e-6)


def test_the_mixed_term_is_a_function_of_seed_epoch_and_step_and_fades():
    form = LossForm("m2-mix", 0.05, 3)
    images, prototypes, labels = unit_rows(4, 8, seed=1), unit_rows(3, 8, seed=2), torch.tensor([0, 1, 2, 0])

    def term(epoch: int, step: int, made=form) -> float:
        return made.mixed(images, prototypes, labels, 100.0, epoch, step).item()

    assert term(0, 0) == term(0, 0)
    assert len({term(0, 0), term(0, 1), term(0, 0, replace(form, seed=4))}) == 3
    assert term(1, 0) < term(0, 0)
    assert term(0, 0, replace(form, weight=0.1)) == pytest.approx(2 * term(0, 0))
    assert LossForm().mixed(images, prototypes, labels, 100.0, 0, 0) is None
    logits = 10 * images @ prototypes.T
    assert torch.equal(LossForm().each(logits, labels, 0.1), F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1))


def learned(backbone, method: str, **training) -> tuple[torch.Tensor, set[str]]:
    """Everything that a short run learns from four labelled pictures, and what its epoch logged."""
    config, prepared = prepare_toy(backbone, method, options=quick(epochs=1, **training))
    store, log = load(pictures(1), decode_limits(config.views, prepared.engine.backbone.preprocess), QUIET).store, Log()
    model = fit(prepared, store, config, QUIET, Hooks(run=log), hints=Hints(torch.arange(4), torch.arange(4))).model
    state = {**model.engine.backbone.image_state(), **model.task.prediction_state()}
    return torch.cat([tensor.flatten().float() for tensor in state.values()]), {key for event in log.events for key in event}


@pytest.mark.parametrize("method", ["dpa", "coop"])
def test_methods_train_by_it(tiny_vit, method):
    plain, said = learned(tiny_vit, method)
    other, _ = learned(tiny_vit, method, loss="infoloob")
    mixed, logged = learned(tiny_vit, method, loss="m2-mix")
    assert not torch.equal(plain, other)
    assert not torch.equal(plain, mixed)
    assert logged - said == {"mixed"}
    # Without weight the term is not there, to the bit.
    assert torch.equal(learned(tiny_vit, method, loss="m2-mix", mix_weight=0.0)[0], plain)


@pytest.mark.parametrize("method", ["microclip", "mars"])
def test_a_method_whose_loss_is_its_own_refuses(tiny_vit, method):
    with pytest.raises(UserError, match=rf"training\.loss=infoloob has no effect: the loss of method {method} is its own"):
        prepare_toy(tiny_vit, method, options=quick(loss="infoloob"))


def test_the_page_names_the_methods_that_heed_it():
    tasks = {"consensus-tuned": ConsensusTuned, "fair": Fair, "dpa": Dpa, "upl": Upl, "coop": Coop, "clip-svd": ClipSvd}
    tasks |= {"microclip": MicroClip, "lafter": Lafter, "nola": Nola, "mars": Mars}
    assert set(tasks) == {method.name for method in METHODS if method.trains}
    page = (Path(__file__).parents[2] / "docs/losses.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("It is heeded by "))
    heeds, _ = line.split(". ", 1)
    assert set(re.findall(r"`([a-z-]+)`", heeds)) == {name for name, task in tasks.items() if task.takes_loss}
