"""Floating-point operations of one image, counted by running it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count

from finelens.protocol import Backbone


def flops_per_forward(backbone: Backbone, device: torch.device) -> int | None:
    """A multiplication and an addition count as two; matrix products, attention and convolutions count. None where nothing could be counted."""
    size = backbone.preprocess.image_size
    image = backbone.normalise(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))
    counter = FlopCounterMode(display=False, custom_mapping=_fused())
    try:
        with torch.no_grad(), counter:
            backbone.encode_image(image)
    except (RuntimeError, NotImplementedError):
        return None
    return int(counter.get_total_flops()) or None


def _fused() -> dict[Any, Any]:
    """Operators that the counter does not know: convolutions that write their activation themselves, and attention on a CPU."""
    formulas = {
        getattr(torch.ops.mkldnn, "_convolution_pointwise", None): _convolution,
        getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None): _attention,
    }
    return {operator: formula for operator, formula in formulas.items() if operator is not None}


def _convolution(x: Any, weight: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    return int(conv_flop_count(x, weight, out_shape))


def _attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    return int(sdpa_flop_count(query, key, value))
