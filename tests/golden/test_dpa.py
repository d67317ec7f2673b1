"""DPA against the released code: scores of one batch, and three steps of its training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finelens.engine.device import Precision
from finelens.engine.engine import Engine
from finelens.methods.dpa.config import DpaConfig
from finelens.methods.dpa.prototypes import image_prototypes
from finelens.methods.dpa.pseudo_labels import align_distribution, assign
from finelens.methods.dpa.task import Dpa
from finelens.protocol import Backbone, Batch, ImageTokens
from finelens.training.pseudo_labels import ranking
from finelens.training.schedule import build_optimizer, set_lr

pytestmark = pytest.mark.golden


class LinearBackbone(Backbone):
    """``f(x) = l2norm(W x)``: the toy encoder of the stored run."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.name, self.logit_scale, self.logit_bias = "linear", 100.0, 0.0
        self.weight = nn.Parameter(weight.clone(), requires_grad=False)

    def normalise(self, images: Tensor) -> Tensor:
        return images

    def encode_image(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        return ImageTokens(F.normalize(images @ self.weight.T, dim=-1), images)

    def tunable(self, scope: str) -> dict[str, nn.Parameter]:
        return {"weight": self.weight}

    def project(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        raise NotImplementedError

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        raise NotImplementedError

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        raise NotImplementedError

    def image_config(self) -> dict[str, Any]:
        raise NotImplementedError

    def image_state(self) -> dict[str, Tensor]:
        raise NotImplementedError


def assert_close(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def test_image_prototypes_and_text_stand_in_for_an_empty_class(golden):
    g = golden.tensors("dpa_scores")
    prototypes = image_prototypes(g["memory_features"], g["memory_labels"], g["Z"])
    assert 6 not in g["memory_labels"]
    assert_close(prototypes, g["P"], 1e-6)
    assert torch.equal(prototypes[6], g["Z"][6])


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_pseudo_labels_and_ranking(golden, share):
    g = golden.tensors("dpa_scores")
    text, image = g["probs_txt"], (100 * g["f_weak"] @ g["P"].T).softmax(-1)
    aligned = align_distribution(text.log(), g["Q"].log()).exp()
    pseudo = assign(text, aligned, image, image_share=share, weighting=True)
    assert_close(image, g[f"a{share}.probs_centre"], 1e-5)
    assert_close(aligned, g[f"a{share}.probs_txt_aligned"], 1e-6)
    assert_close(pseudo.posterior, g[f"a{share}.probs"], 1e-5)
    assert torch.equal(pseudo.labels, g[f"a{share}.y"])
    assert_close(ranking(text, pseudo.labels), g[f"a{share}.w_txt"], 1e-6)
    assert_close(ranking(image, pseudo.labels), g[f"a{share}.w_centre"], 1e-5)
    assert_close(pseudo.weights, g[f"a{share}.w_txt"] * g[f"a{share}.w_centre"], 1e-5)


@pytest.mark.parametrize("case", ["cfg1", "cfg2"])
def test_three_steps_and_the_end_of_the_epoch(golden, case):
    g, entry = golden.tensors("dpa_steps"), golden.group("dpa_steps")["cases"][case]
    published = entry["config"]
    config = DpaConfig(
        image_share=published["a"], align_scale=published["w"] / 100, marginal_weight=published["reg"], align_weight=published["align"]
    )
    engine = Engine(LinearBackbone(g["W0"]), torch.device("cpu"), Precision(torch.float32, "test"))
    task = Dpa(engine, g["Z0"], config)
    stored = {"image_prototypes": g["P0"], "memory_features": g["memory0_features"], "memory_labels": g["memory0_labels"]}
    task.load_state_dict({**task.state_dict(), **stored})
    optimizer = build_optimizer(task, 1e-3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]

    losses = []
    for step, (lr, index) in enumerate(zip((1e-3, 8e-4, 6e-4), g["idx"].split([5, 5, 4]), strict=True)):
        set_lr(optimizer, lr)
        optimizer.zero_grad()
        output = task.step(Batch(index=index, weak=g[f"weak{step}"], strong=g[f"strong{step}"]), 0, step)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert_close(task.image_prototypes, g["P0"], 0)
    task.end_epoch(0)

    assert losses == pytest.approx(entry["loss"], rel=1e-4)
    assert_close(engine.backbone.weight.detach(), g[f"{case}.W_final"], 5e-5)
    assert_close(task.prototypes.detach(), g[f"{case}.Z_final"], 5e-5)
    assert_close(task.image_prototypes, g[f"{case}.P_final"], 5e-5)
    assert_close(task.memory_features, g[f"{case}.memory_features"], 5e-5)
    assert torch.equal(task.memory_labels, g[f"{case}.memory_labels"])
    assert_close(task.log_means.exp(), g[f"{case}.prob_list"], 5e-5)
