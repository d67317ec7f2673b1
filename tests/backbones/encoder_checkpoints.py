"""Small random image encoders in the formats of timm and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from safetensors.torch import save_file

# Constructor arguments of the configuration, by class of transformers.
DINOS: dict[str, dict[str, Any]] = {
    "Dinov2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "image_size": 96},
    "Dinov2WithRegisters": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "image_size": 64},
    "DINOv3ViT": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "intermediate_size": 64},
    "DINOv3ConvNext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
}


def write_timm(file: Path, name: str, *, seed: int = 0, classes: int = 10) -> torch.nn.Module:
    """Weights of a timm model with its classifier, as safetensors. Returns the model without it, in evaluation mode."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=classes).eval()
    save_file(model.state_dict(), file)
    model.reset_classifier(0)
    return model


def write_dino(folder: Path, kind: str, *, seed: int = 0) -> torch.nn.Module:
    """A DINOv2 or DINOv3 of 64-pixel images as transformers saves it. Returns the model, in evaluation mode."""
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**DINOS[kind])).eval()
    model.save_pretrained(folder)
    if kind.startswith("DINOv3"):
        processor = transformers.DINOv3ViTImageProcessor(size={"height": 64, "width": 64})
    else:
        processor = transformers.BitImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    processor.save_pretrained(folder)
    return model
