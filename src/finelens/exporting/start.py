"""Whether a model that is loaded again is the one that a run started from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from finelens.backbones.dual_encoder import STATE_PREFIX
from finelens.errors import UserError
from finelens.runs.model import Model


def check_start(model: Model, tower: Mapping[str, Tensor]) -> None:
    """Compare the image tower of a source with the unadapted one of a run: the text tower that comes with it belongs to no other.

    Args:
        model: The run's model.
        tower: The source's image tower, by open_clip's names without their prefix.

    Raises:
        UserError: They differ.
    """
    for name, tensor in model.engine.backbone.image_state().items():
        started = model.base.get(name, tensor).cpu()
        found = tower.get(name.removeprefix(STATE_PREFIX))
        if found is None or not torch.equal(found.detach().cpu().to(started), started):
            raise UserError(
                f"{model.engine.backbone.name} is no longer the model that the run started from ({name} differs), so its text tower is not "
                "the run's; put the former model there, or use --to onnx or --to torch, which need no text tower"
            )
