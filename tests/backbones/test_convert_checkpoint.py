"""Checkpoints as papers publish them, small and in the real layout: what the script writes gives open_clip's features."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F

from finelens.backbones.registry import load_backbone
from tests.backbones.checkpoints import TINY_RESNET, TINY_TEXT, TINY_VIT

TEXTS = ["a photo of a cat", "a small house on a hill"]
CONFIG = {"embed_dim": 48, "quick_gelu": True, "vision_cfg": TINY_VIT, "text_cfg": TINY_TEXT}
SCRIPT = Path(__file__).parents[2] / "scripts/convert_checkpoint.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_of(config: dict) -> open_clip.CLIP:
    torch.manual_seed(0)
    return open_clip.CLIP(**{key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}).eval()


def converted(script, folder: Path, saved: object, config: dict, drop=()):
    torch.save(saved, folder / "paper.pt")
    script.write(folder / "out", *script.convert(script.read_state(folder / "paper.pt"), config, drop))
    return load_backbone(f"local:{folder / 'out'}")


def same(backbone, model) -> None:
    noise, tokens = torch.randn(2, 3, 64, 64), open_clip.tokenize(TEXTS, context_length=model.context_length)
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_image(noise).global_, F.normalize(model.encode_image(noise), dim=1), atol=1e-5, rtol=0)
        torch.testing.assert_close(backbone.encode_text(TEXTS), F.normalize(model.encode_text(tokens), dim=1), atol=1e-5, rtol=0)


def test_long_clip_adds_two_tables_of_positions(script, tmp_path):
    """The released code adds ``positional_embedding`` in the first 20 places and ``positional_embedding_res`` in the others."""
    long = {**CONFIG, "text_cfg": {**TINY_TEXT, "context_length": 248}}
    model = model_of(long)
    first, rest = torch.randn(248, 32), torch.randn(248, 32)
    mask = (torch.arange(248) < 20).float()[:, None]
    model.positional_embedding.data = first * mask + rest * (1 - mask)
    saved = {**model.state_dict(), "positional_embedding": first, "positional_embedding_res": rest}
    backbone = converted(script, tmp_path, saved, CONFIG)
    assert backbone.context_length == 248
    same(backbone, model)


@pytest.mark.parametrize("wrapped", ["bare", "state_dict of a training, module.", "half precision"])
def test_state_dicts_of_clip_s_layout(script, tmp_path, wrapped):
    """un2CLIP's and FarSLIP's vanilla files, checkpoints of open_clip's training."""
    model = model_of(CONFIG)
    state = model.state_dict()
    if wrapped == "half precision":
        saved = {name: tensor.half() for name, tensor in state.items()} | {"input_resolution": torch.tensor(64), "vocab_size": torch.tensor(49408)}
        model.load_state_dict({name: tensor.half().float() for name, tensor in state.items()})
    else:
        saved = state if wrapped == "bare" else {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    same(converted(script, tmp_path, saved, CONFIG), model)


def test_cloob_has_a_temperature_of_its_loss(script, tmp_path):
    config = {**CONFIG, "vision_cfg": TINY_RESNET}
    model = model_of(config)
    saved = {"state_dict": {f"module.{name}": tensor for name, tensor in {**model.state_dict(), "logit_inv_tau": torch.tensor(3.4)}.items()}}
    with pytest.raises(SystemExit, match=r"does not have \(--drop it, or choose another\): logit_inv_tau"):
        converted(script, tmp_path, saved, config)
    same(converted(script, tmp_path, saved, config, ["logit_inv_tau"]), model)


def test_what_does_not_fit_is_refused(script, tmp_path):
    state = model_of(CONFIG).state_dict()
    lacking = {name: tensor for name, tensor in state.items() if name != "visual.proj"}
    with pytest.raises(SystemExit, match=r"lacks: visual.proj"):
        script.convert(lacking, CONFIG)
    with pytest.raises(SystemExit, match=r"visual.proj \(64, 40\) and not \(64, 48\)"):
        script.convert({**state, "visual.proj": torch.zeros(64, 40)}, CONFIG)


class Opens:
    """What a pickle can do when it is read without ``weights_only``."""

    def __reduce__(self):
        return open, ("ran.txt", "w")


def test_code_in_a_pickle_is_not_run(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Opens()}, tmp_path / "bad.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        script.read_state(tmp_path / "bad.pt")
    assert not (tmp_path / "ran.txt").exists()
