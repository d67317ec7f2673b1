"""Small random checkpoints in open_clip's saved layout, for tests that need a real backbone without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

CLIP_PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
TINY_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TINY_VIT = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 16}
TINY_RESNET = {"image_size": 64, "layers": [1, 1, 2, 1], "width": 8, "patch_size": None}


def write_tiny_vit(
    folder: Path,
    *,
    quick_gelu: bool = True,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    preprocess: dict[str, Any] | None = None,
    seed: int = 0,
    **model: Any,
) -> Path:
    """ViT of width 64, 2 layers, 16-pixel patches, 64-pixel images (4 x 4 patches), joint width 48. Returns ``folder``.

    Args:
        folder: Where to write; made if absent.
        quick_gelu: Activation of both towers.
        vision: Overrides of ``vision_cfg``.
        text: Overrides of ``text_cfg``.
        preprocess: Overrides of ``preprocess_cfg``.
        seed: Of the weights.
        **model: Further keys of ``model_cfg``, e.g. ``custom_text=True`` or ``init_logit_bias=-10``.
    """
    config = {
        "embed_dim": 48,
        "quick_gelu": quick_gelu,
        "vision_cfg": {**TINY_VIT, **(vision or {})},
        "text_cfg": {**TINY_TEXT, **(text or {})},
        **model,
    }
    return _write(folder, config, {**CLIP_PREPROCESS, **(preprocess or {})}, seed)


def write_tiny_resnet(folder: Path, *, seed: int = 0) -> Path:
    """CLIP ResNet with 5 bottlenecks, stem width 8 (W = 256), 64-pixel images (2 x 2 cells), joint width 48. Returns ``folder``."""
    return _write(folder, {"embed_dim": 48, "quick_gelu": True, "vision_cfg": TINY_RESNET, "text_cfg": TINY_TEXT}, CLIP_PREPROCESS, seed)


def write_tiny_timm(folder: Path, timm_model: str, *, seed: int = 0, **vision: Any) -> Path:
    """Model whose image tower is the timm architecture ``timm_model``; ``vision`` are further keys of ``vision_cfg``. Returns ``folder``."""
    vision_config = {"timm_model_name": timm_model, "timm_model_pretrained": False, **vision}
    return _write(folder, {"embed_dim": 48, "custom_text": True, "vision_cfg": vision_config, "text_cfg": TINY_TEXT}, CLIP_PREPROCESS, seed)


def open_clip_model(folder: Path) -> torch.nn.Module:
    """The checkpoint as open_clip itself builds it, in evaluation mode: the reference of tests."""
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    model = _model(config)
    open_clip.load_checkpoint(model, str(folder / "open_clip_model.safetensors"))
    return model.eval()


def _model(config: dict[str, Any]) -> torch.nn.Module:
    arguments = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    custom_text = arguments.pop("custom_text", False)
    return (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**arguments)


def _write(folder: Path, model_config: dict[str, Any], preprocess: dict[str, Any], seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = _model(model_config).state_dict()
        state = {name: _perturb(name, tensor).contiguous() for name, tensor in state.items()}
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_config, "preprocess_cfg": preprocess}), encoding="utf-8")
    return folder


def _perturb(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Move every vector off its neutral initial value, so that a forgotten bias or norm shows."""
    if not tensor.is_floating_point() or tensor.ndim != 1:
        return tensor.clone()
    noise = 0.2 * torch.randn_like(tensor)
    return (tensor + noise.abs()) if name.endswith("running_var") else tensor + noise
