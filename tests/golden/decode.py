"""Decoder of the stored golden model: small integers times a power of two back to float32, checked against the manifest's digests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Two 4-bit integers per byte along the last axis: low nibble first, each offset by 8. (..., K) uint8 -> (..., 2K) int64."""
    wide = packed.to(torch.int64)
    low, high = (wide & 15) - 8, (wide >> 4) - 8
    return torch.stack((low, high), dim=-1).flatten(-2)


def decode_tensor(stored: Tensor, scale: float | None) -> Tensor:
    """Stored tensor -> float32. float32 entries come without a scale, int8 and uint8 (packed) entries with one."""
    if stored.dtype == torch.float32:
        return stored
    if scale is None:
        raise ValueError(f"integer tensor of shape {tuple(stored.shape)} without a scale in the manifest")
    integers = unpack_nibbles(stored) if stored.dtype == torch.uint8 else stored
    return integers.to(torch.float32) * scale


def digest(tensor: Tensor) -> str:
    """SHA-256 of the C-order little-endian bytes."""
    array = tensor.contiguous().numpy()
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def decode_model(stored: Mapping[str, Tensor], entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """Decode a whole model file and check every digest that the manifest's ``model`` entry gives."""
    decoded = {name: decode_tensor(tensor, entry["scales"].get(name)) for name, tensor in stored.items()}
    for name, expected in entry["sha256_of_decoded_float32"].items():
        if digest(decoded[name]) != expected:
            raise ValueError(f"decoded {name} does not have the digest in the manifest")
    return decoded
