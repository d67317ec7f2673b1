"""Every training method under every tuning scope."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from finelens import api
from finelens.backbones.open_clip_loader import OpenClipBackbone
from finelens.backbones.vit import VisionTransformer, ViTConfig
from finelens.engine import flops
from finelens.errors import UserError
from finelens.runs.model import load_model, save_model
from finelens.training.loop import Interrupted
from tests.toy import QUIET, TRAINING, TUNING, digest, fit_toy, pictures, quick, stop_after

SCOPES = ("none", "norm", "last-1-norm", "lora-2", "svd", "all")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("method", TUNING)
def test_trains_what_the_scope_names_and_saves_plain_weights(tiny_vit, method, scope, tmp_path):
    before = OpenClipBackbone.from_folder(tiny_vit)
    if (method, scope) == ("consensus-tuned", "none"):
        # It trains the tower and nothing else.
        with pytest.raises(UserError, match="nothing is trained"):
            fit_toy(tiny_vit, method, pictures(2), options=quick(epochs=1, scope=scope))
        return
    # The tower learns in the second stage of this one.
    epochs = 2 if method == "mars" else 1
    prepared, fitted, _ = fit_toy(tiny_vit, method, pictures(2), options=quick(epochs=epochs, scope=scope))
    state, plain = fitted.model.engine.backbone.image_state(), before.image_state()
    assert state.keys() == plain.keys()
    moved = {name for name in plain if not torch.equal(state[name], plain[name])}
    # Parameters that a forward does not read stay: in a scope they may, outside they must.
    assert moved <= set(fitted.model.base) == set(before.adapted(scope))
    assert bool(moved) == (scope != "none")
    save_model(tmp_path, fitted.model)
    again = load_model(tmp_path)
    pixels = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for branch, logits in fitted.model.logits(pixels).items():
        torch.testing.assert_close(again.logits(pixels)[branch], logits, atol=1e-6, rtol=1e-6)
    assert torch.equal(again.zero_shot_logits(pixels)["templates"], fitted.model.zero_shot_logits(pixels)["templates"])
    with torch.no_grad():
        features = before.encode_image(before.normalise(pixels)).global_
    torch.testing.assert_close(again.zero_shot_logits(pixels)["templates"], before.logit_scale * features @ prepared.heads.templates.T)
    assert torch.equal(again.logits(pixels)["logits"], fitted.model.logits(pixels)["logits"])


@pytest.mark.parametrize("scope", ["last-1-norm", "lora-2", "svd"])
def test_interrupted_and_resumed_run_ends_in_the_same_bits(backbone, scope, photos, classes, tmp_path):
    given = {"backbone": f"local:{backbone}", "method": "dpa", "options": quick(scope=scope), "console": QUIET}
    api.adapt(photos, classes, tmp_path / "whole", **given)
    with pytest.raises(Interrupted):
        api.adapt(photos, classes, tmp_path / "broken", **given, should_stop=stop_after(4))
    checkpoint = load_file(tmp_path / "broken/checkpoint/last.safetensors")
    trained = {name: tensor for name, tensor in checkpoint.items() if name.startswith("parameter.visual.")}
    assert trained
    assert not any(name.endswith((".u", ".vt", ".original")) for name in checkpoint)
    if scope == "svd":
        assert all(name.endswith(".shift") and tensor.ndim == 1 for name, tensor in trained.items())
    api.resume(tmp_path / "broken", console=QUIET)
    for file in ("model/model.safetensors", "model/zero_shot.safetensors", "predictions.csv"):
        assert digest(tmp_path / "whole" / file) == digest(tmp_path / "broken" / file), file


@pytest.mark.parametrize("method", sorted(set(TRAINING) - set(TUNING)))
def test_a_scope_that_could_have_no_effect_is_refused(tiny_vit, method):
    with pytest.raises(UserError, match=rf"no effect: method {method} "):
        fit_toy(tiny_vit, method, pictures(1), options=quick(scope="norm"))


def test_a_run_in_which_nothing_learns_is_refused(tiny_vit):
    options = {**quick(scope="none"), "method": {"train_anchors": False}}
    with pytest.raises(UserError, match="nothing is trained"):
        fit_toy(tiny_vit, "fair", pictures(1), options=options)


def work(scope: str) -> tuple[float, int]:
    """FLOPs of forward and backward as a multiple of the forward, and numbers kept for the backward pass, of a 12-layer ViT."""
    torch.manual_seed(0)
    tower = VisionTransformer(ViTConfig(64, 16, 64, 12, 4, 48)).requires_grad_(False)
    backbone = OpenClipBackbone.__new__(OpenClipBackbone)
    torch.nn.Module.__init__(backbone)
    backbone.visual = tower
    for parameter in backbone.tunable(scope).values():
        parameter.requires_grad_(True)
    images, kept = torch.rand(2, 3, 64, 64), 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() if not isinstance(tensor, torch.nn.Parameter) and tensor._base is None else 0
        return tensor

    with torch.no_grad():
        forward = flops.count(lambda: tower.tokens(images))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        both = flops.count(lambda: tower.tokens(images).global_.sum().backward())
    return both / forward, kept


def test_the_prefix_of_last_k_norm_runs_forward_only():
    whole, kept_whole = work("norm")
    last, kept_last = work("last-3-norm")
    # Frozen weights get no gradient: a block's backward pass costs as much as its forward pass (attention's twice that), and only 3 of 12 have one.
    # The last of them is a small one, since only its class token is read.
    assert 1.9 < whole < 2.1
    assert 1.15 < last < 1.25
    assert kept_last < 0.3 * kept_whole
