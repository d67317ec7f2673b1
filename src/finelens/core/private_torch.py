"""Every name that torch keeps to itself and finelens uses, in one place: each may be gone with the next version, and a test keeps the others out.

Where a name is missing, its user goes a public way: nothing depends on one being there, but for :func:`own_buffers` and :func:`version`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


def _in(namespace: Any, name: str) -> Callable[..., Any] | None:
    found: Callable[..., Any] | None = getattr(namespace, name, None)
    return found


def _says_yes(name: str) -> bool:
    check = _in(torch.cpu, name)
    return check is not None and bool(check())


# What the counter of operations must be told of: kernels of CPUs.
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
CPU_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# Convolution with an activation in one kernel, which torch's compiler emits; None where this build or this processor has none.
fused_convolution = _in(torch.ops.mkldnn, "_convolution_pointwise") if torch.backends.mkldnn.is_available() else None
# Lays a kernel out as :data:`fused_convolution` computes with it, for inputs of one shape; else every call does so first.
pack_kernel = _in(torch.ops.mkldnn, "_reorder_convolution_weight") if fused_convolution is not None else None


# Keeps a function out of what torch compiles, as ``torch.compiler.disable`` does, which imports the compiler where a module is loaded: half of all
# import time. This one waits for the first call.
outside_compiler: Callable[[Any], Any] = _in(torch._compile, "_disable_dynamo") or torch.compiler.disable


def fused_convolution_takes_bfloat16() -> bool:
    """Whether this processor computes :data:`fused_convolution` in bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def bfloat16_units() -> list[str]:
    """Names of what this processor has to compute in bfloat16."""
    return [name for name, check in (("AMX", "_is_amx_tile_supported"), ("AVX512-BF16", "_is_avx512_bf16_supported")) if _says_yes(check)]


def parametrization_cache() -> dict[Any, Any] | None:
    """What ``torch.nn.utils.parametrize.cached()`` fills; None outside of it."""
    kept: dict[Any, Any] | None = getattr(parametrize, "_cache", None) if getattr(parametrize, "_cache_enabled", 0) else None
    return kept


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """The buffers of a module without those of its parts, also the empty ones; assigning to an entry replaces the buffer."""
    return module._buffers


def version(tensor: Tensor) -> int:
    """How often a tensor has been written to."""
    return tensor._version
