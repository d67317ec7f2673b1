"""Which float type the towers compute in, and why."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from finelens.core.device_names import check_device_name
from finelens.core.private_torch import bfloat16_units
from finelens.errors import UserError


@dataclass(frozen=True)
class Precision:
    """Float type of the image tower; norms, softmax, losses and prototypes stay in float32.

    Attributes:
        dtype: ``torch.float32`` or ``torch.bfloat16``.
        reason: One line for the user.
    """

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """``float32`` or ``bfloat16``, as the configuration calls it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def of_texts(self) -> torch.dtype:
        """Float type of a text tower on the CPU that knows both: bfloat16 where images are in it and this machine's processor has units for it."""
        return torch.bfloat16 if self.dtype is torch.bfloat16 and bfloat16_units() else torch.float32

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """Context in which the tower runs."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """Resolve ``auto`` by what the processor can do, not by timing it: the same machine must give the same bits on a busy day.

    Args:
        wanted: ``auto``, ``float32`` or ``bfloat16``.
        device: Where the tower runs.
    """
    if wanted != "auto":
        return Precision(getattr(torch, wanted), f"{wanted} (training.precision)")
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision(torch.bfloat16, f"bfloat16: {torch.cuda.get_device_name(device)} computes in it")
    if device.type == "cpu":
        if units := bfloat16_units():
            return Precision(torch.bfloat16, f"bfloat16: this processor has {units[0]}")
        return Precision(torch.float32, "float32: this processor has neither AMX nor AVX512-BF16")
    return Precision(torch.float32, f"float32: {device.type} is not known to be faster in bfloat16")


def choose_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UserError: It is not known or not here.
    """
    check_device_name(name)
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r} is not available: this torch sees {torch.cuda.device_count() or 'no'} CUDA device(s); use --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device {name!r} is not available on this machine; use --device cpu")
    return device
