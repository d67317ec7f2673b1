"""Defaults that belong to a backbone. The methods' own defaults are the papers', made for CLIP ViTs; a backbone of another kind may need others.

One set of values per backbone, for all data sets; ``--set`` wins over it. How the values were found is on the backbone's page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Defaults = Mapping[str, Mapping[str, Any]]

# docs/embedded.md, "Defaults": found on pets37, cifar10 and dtd10 only.
_TRAINING: dict[str, Defaults] = {"embedded": {"training": {"lr": 1e-3, "batch_size": 32}}}
_METHODS: dict[tuple[str, str], Defaults] = {("embedded", "microclip"): {"method": {"projection_lr_scale": 0.01}}}


def recommended(backbone: str, method: str, *, trains: bool) -> Defaults:
    """Values by section and key that take the place of the dataclasses' defaults.

    Args:
        backbone: Specification of the backbone.
        method: Name of the method.
        trains: Whether it runs the training loop.
    """
    if not trains:
        return {}
    return {**_TRAINING.get(backbone, {}), **_METHODS.get((backbone, method), {})}
