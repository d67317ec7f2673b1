"""Buffers whose size depends on the images, which a freshly built task does not know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def resize_on_load(module: nn.Module, *names: str) -> None:
    """Let ``load_state_dict`` give these buffers of ``module`` the shape that was saved, on the device they are on.

    Works for a module on its own and inside another one.

    Args:
        module: Owner of the buffers.
        names: Buffers registered directly on it.
    """
    module.register_load_state_dict_pre_hook(_Resize(names))


def late_buffers(module: nn.Module, *names: str, device: torch.device) -> None:
    """Give a module empty buffers that are filled later, or by ``load_state_dict`` in whatever shape was saved."""
    for name in names:
        module.register_buffer(name, torch.empty(0, device=device))
    resize_on_load(module, *names)


@dataclass(frozen=True)
class _Resize:
    """The hook; an object rather than a closure, so that modules can be pickled by those who must."""

    names: tuple[str, ...]

    def __call__(self, owner: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
        for name in self.names:
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(owner, name, torch.empty_like(saved, device=getattr(owner, name).device))
