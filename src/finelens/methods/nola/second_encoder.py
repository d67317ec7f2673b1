"""Features of the second encoder, on which the labelling network rests. Shapes: N images, B in a batch, D2 its width."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from finelens.backbones.registry import load_backbone
from finelens.core.options import nearest
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.methods.nola.config import NolaConfig
from finelens.protocol import Interpolation, Preprocess, TargetFeatures
from finelens.storage.tensors import load_tensors


def check_second_encoder(config: NolaConfig) -> None:
    """Find out before the work whether the second encoder is there.

    Raises:
        UserError: An unknown architecture, or a file or folder that does not exist.
    """
    scheme, _, rest = config.second_encoder.partition(":")
    if scheme == "local" and not Path(rest).is_dir():
        raise UserError(f"method.second_encoder={config.second_encoder}: no such folder; give one with a model in open_clip's saved layout")
    if scheme != "timm":
        return
    import timm

    if not timm.is_model(rest):
        near = nearest(rest, timm.list_models())
        remedy = f"did you mean timm:{near}?" if near else "take a name from timm.list_models()"
        raise UserError(f"method.second_encoder={config.second_encoder}: timm has no such model; {remedy}")
    if not Path(str(config.second_checkpoint)).is_file():
        raise UserError(f"method.second_checkpoint={config.second_checkpoint}: no such file; give the safetensors file of {rest}")


def second_features(config: NolaConfig, engine: Engine, features: TargetFeatures) -> Tensor:
    """One pooled feature of every target image, not normalised, (N, D2), in store order, from the centre view.

    Raises:
        UserError: The second encoder cannot be loaded.
    """
    scheme, _, rest = config.second_encoder.partition(":")
    if scheme == "self" or engine.backbone.name == config.second_encoder == "embedded":
        return features.cls
    assert features.views is not None
    with engine.stopwatch("second encoder"):
        if scheme in ("embedded", "local"):
            second = Engine(load_backbone(config.second_encoder), engine.device, engine.precision)
            second.processes = engine.processes
            return second.features(features.views(second.backbone.preprocess)).cls
        encoder = TimmEncoder(rest, Path(str(config.second_checkpoint))).to(engine.device)
        return encoder.encode_all(features.views(encoder.preprocess), engine)


class TimmEncoder(nn.Module):
    """A timm model without its classifier.

    Attributes:
        preprocess: Input geometry and statistics, as timm records them for the model.

    Args:
        name: Name in timm, e.g. ``vit_base_patch16_224.dino``.
        checkpoint: Its weights.

    Raises:
        UserError: Weights that do not fit, or an input that is not square.
    """

    def __init__(self, name: str, checkpoint: Path) -> None:
        super().__init__()
        import timm
        from timm.data import resolve_model_data_config

        self.model: Any = timm.create_model(name, pretrained=False, num_classes=0)
        self.preprocess = _preprocess(name, resolve_model_data_config(self.model))
        tensors = load_tensors(checkpoint)
        own = self.model.state_dict()
        missing = sorted(own.keys() - tensors.keys())
        misshaped = sorted(key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape)
        if missing or misshaped:
            fault = f"lacks {missing[0]}" if missing else f"has another shape of {misshaped[0]}"
            raise UserError(f"{checkpoint} does not fit timm's {name}: it {fault}; give the weights of that model in timm's layout")
        # What is left over is the classifier that a labelling network replaces.
        self.model.load_state_dict({key: tensors[key] for key in own})
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def encode_all(self, views: Iterator[Tensor], engine: Engine) -> Tensor:
        """Pooled features (N, D2) of uint8 batches (B, 3, S, S), on the engine's device and in its precision."""
        from torchvision.transforms.v2.functional import normalize

        parts = []
        for batch in views:
            pixels = normalize(batch.to(engine.device).float() / 255, self.preprocess.mean, self.preprocess.std)
            with engine.precision.autocast(engine.device):
                parts.append(self.model(pixels).float())  # (B, D2)
        return torch.cat(parts)


def _preprocess(name: str, data: dict[str, Any]) -> Preprocess:
    _, height, width = data["input_size"]
    if height != width or data["interpolation"] not in get_args(Interpolation):
        raise UserError(
            f"method.second_encoder=timm:{name}: input {height} x {width}, {data['interpolation']}, is not supported; choose another model"
        )
    return Preprocess(height, math.floor(height / data["crop_pct"]), tuple(data["mean"]), tuple(data["std"]), data["interpolation"])
