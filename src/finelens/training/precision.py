"""Which float type the image tower computes in, and why."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

PROBE_SIZE = 768
# bfloat16 must pay for its casts before it is chosen.
WORTHWHILE = 1.3


@dataclass(frozen=True)
class Precision:
    """Float type of the image tower; norms, softmax, losses and prototypes stay in float32.

    Attributes:
        dtype: ``torch.float32`` or ``torch.bfloat16``.
        reason: One line for the user.
    """

    dtype: torch.dtype
    reason: str

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """Context in which the tower runs."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """Resolve ``auto`` by timing one matrix product in both types.

    Args:
        wanted: ``auto``, ``float32`` or ``bfloat16``.
        device: Where the tower runs.
    """
    if wanted != "auto":
        return Precision(getattr(torch, wanted), f"{wanted}: asked for")
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported()
        return Precision(
            torch.bfloat16 if supported else torch.float32, f"{'bfloat16' if supported else 'float32'}: {torch.cuda.get_device_name(device)}"
        )
    if device.type != "cpu":
        return Precision(torch.float32, f"float32: bfloat16 is not probed on {device.type}")
    if not torch.backends.mkldnn.is_available():
        return Precision(torch.float32, "float32: this build has no oneDNN")
    speedup = _seconds(torch.float32) / _seconds(torch.bfloat16)
    if speedup >= WORTHWHILE:
        return Precision(torch.bfloat16, f"bfloat16: {speedup:.1f} times float32 in a matrix product on this processor")
    return Precision(torch.float32, f"float32: bfloat16 is {speedup:.1f} times as fast in a matrix product on this processor, which is not worth it")


def _seconds(dtype: torch.dtype) -> float:
    x = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - start)
    return best
