"""The image tower's forward through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from finelens.engine.microbatch import is_out_of_memory
from finelens.protocol import Backbone, ImageTokens

# Work of a run in the image tower, in floating-point operations, from which compiling pays: a minute of a GPU that does 80 TFLOP/s. Counted and not
# timed: a resumed run must decide as the first one did.
WORTH_COMPILING = 5e15


def worth_compiling(wanted: str, device: torch.device, flops: float) -> bool:
    """Whether the tower is to be compiled.

    Args:
        wanted: ``on``, ``off`` or ``auto``: on CUDA for long runs. On a CPU compiling takes longer than it saves.
        device: Where the tower runs.
        flops: Work of the whole run, from its first epoch.
    """
    return wanted == "on" or (wanted == "auto" and device.type == "cuda" and flops >= WORTH_COMPILING)


class CompiledTower:
    """Stands for ``Backbone.encode_image``. What is compiled is the call: modules, parameters and their names are as they were.

    The first call of each kind compiles. Where that fails it is said once, and the tower runs as it is.

    Args:
        backbone: Whose tower it is.
        say: Told of a failure, in one line.
    """

    def __init__(self, backbone: Backbone, say: Callable[[str], object]) -> None:
        def tower(images: Tensor, patches: bool, prompts: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
            tokens = backbone.encode_image(images, patches=patches, prompts=prompts)
            return tokens.global_, tokens.cls, tokens.patches

        self._plain = self._compiled = tower
        self._compiled = torch.compile(tower)
        self._say = say

    def __call__(self, images: Tensor, *, patches: bool = False, prompts: Tensor | None = None) -> ImageTokens:
        """Tokens of normalised images (B, 3, S, S)."""
        try:
            return ImageTokens(*self._compiled(images, patches, prompts))
        except RuntimeError as error:
            if self._compiled is self._plain or is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]
        self._say(f"the image tower could not be compiled and runs as it is ({reason}); training.compile=off does not try")
        self._compiled = self._plain
        return ImageTokens(*self._plain(images, patches, prompts))
