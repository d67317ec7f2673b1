"""EfficientNet-Lite0 on a CPU: the modules of timm run as convolution, scale, shift and ReLU6 in one pass over memory each.

The tower's time goes into moving large activations, not into arithmetic. Three exact rewritings save most of the moving:

* a BatchNorm with frozen statistics is a scale and a shift per channel, which go into the convolution before it, and ReLU6 is applied as it writes;
* "same" padding of a stride-2 convolution on an even side is one row and one column longer at the end than at the start; a zero row and column at the
  start of the kernel make it symmetric, so that nothing has to be copied into a padded array;
* a training step needs no activation but each layer's output. With ``y = gamma * x_hat + beta``, the normalised input of a BatchNorm is
  ``x_hat = (y - beta) / gamma``, hence ``dL/dgamma = sum(g * (y - beta)) / gamma`` and ``dL/dbeta = sum(g)``, g being the gradient where ReLU6 is
  open (the idea of in-place activated BatchNorm, Rota Bulo et al., 2018, for frozen statistics and frozen convolutions).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

# Bytes of an element times images in one go: the largest activation then stays near the last-level cache and below the size (32 MiB) from which the C
# allocator returns memory to the system after every use.
CHUNK_BYTES = 16
# A channel with |beta| > MAX_RATIO |gamma| loses x_hat in the rounding of y; its layer keeps its inputs instead.
MAX_RATIO = 256.0
# Layers from the input on that stay in float32. The output of the stem goes into depthwise kernels with weights up to 18 that nearly cancel: rounding
# it to bfloat16 alone moves the tower's feature by 4 %.
WIDE_LAYERS = 2
# All strides of the tower together: a multiple of it is even at every stride-2 layer.
TOTAL_STRIDE = 32


@dataclass(frozen=True)
class Layer:
    """A frozen convolution with the BatchNorm after it folded in.

    Attributes:
        conv: The module, for layers whose scale cannot be divided by.
        norm: The module that owns gamma and beta.
        weight: Scaled kernel (O, I / groups, K, K) in the type of the computation.
        bias: Shift (O,) in float32 or wider: it is large where it cancels a large mean.
        padding: Zeros on each side.
        relu6: Whether ReLU6 follows.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    weight: Tensor
    bias: Tensor
    padding: int
    relu6: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Output (B, O, h, w) of x (B, I, H, W), in the layer's type."""
        norm, x = self.norm, x.to(self.weight.dtype)
        if not torch.is_grad_enabled() or not (x.requires_grad or norm.weight.requires_grad or norm.bias.requires_grad):
            return self.run(x)
        if norm.weight.requires_grad and not bool((norm.bias.abs() < MAX_RATIO * norm.weight.abs()).all()):
            return norm(self.conv(x))
        return _FrozenConv.apply(x, norm.weight, norm.bias, self)

    def run(self, x: Tensor) -> Tensor:
        """The same without gradient, of an input in the layer's type."""
        return convolve(x, self.weight, self.bias, self.conv.stride[0], self.padding, self.conv.groups, self.relu6)

    def input_gradient(self, g: Tensor, shape: torch.Size) -> Tensor:
        """Gradient (B, I, H, W) from that of the output before ReLU6, (B, O, h, w)."""
        groups, side = self.conv.groups, self.weight.shape[-1]
        if self.conv.stride[0] == 1:
            # A convolution again, and oneDNN's forward kernels are faster than its backward ones.
            mirrored = self.weight.flip(2, 3) if groups > 1 else self.weight.transpose(0, 1)
            return convolve(g, mirrored, None, 1, side - 1 - self.padding, groups, False)
        # In float32: oneDNN has no fast kernel for the gradient of a strided depthwise convolution in bfloat16.
        wide = torch.float64 if g.dtype is torch.float64 else torch.float32
        x = torch.empty(shape, dtype=wide, device=g.device, memory_format=torch.channels_last)
        gradient: Tensor = torch.ops.aten.convolution_backward(
            g.to(wide), x, self.weight.to(wide), None, [2, 2], [self.padding] * 2, [1, 1], False, [0, 0], groups, [True, False, False]
        )[0]
        return gradient.to(g.dtype)


class _FrozenConv(torch.autograd.Function):
    """A layer that keeps its output only; gradients for the input, gamma and beta."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, layer: Layer) -> Tensor:
        y = layer.run(x)
        ctx.layer, ctx.shape = layer, x.shape
        ctx.save_for_backward(y, gamma, beta)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, gamma, beta = ctx.saved_tensors
        g = torch.ops.aten.hardtanh_backward(grad, y, 0.0, 6.0) if ctx.layer.relu6 else grad
        dgamma, dbeta = None, None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            # With mean beta and variance 1 this is sum(g * (y - beta)) and sum(g), in one pass.
            _, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
                g, y, gamma, beta, torch.ones_like(beta), None, None, False, 0.0, [False, True, True]
            )
            dgamma = dgamma / gamma if ctx.needs_input_grad[1] else None
        return ctx.layer.input_gradient(g, ctx.shape) if ctx.needs_input_grad[0] else None, dgamma, dbeta, None


Blocks: TypeAlias = "list[tuple[list[Layer], bool]]"


def _has_fused_kernel() -> bool:
    # The operator is private to torch (its compiler emits it), so nothing depends on its being there.
    return (
        torch.backends.mkldnn.is_available()
        and "AVX" in torch.backends.cpu.get_cpu_capability()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


FUSED_TYPES = {torch.float32, torch.bfloat16} if _has_fused_kernel() else set()
if FUSED_TYPES and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    FUSED_TYPES.discard(torch.bfloat16)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int, relu6: bool) -> Tensor:
    """Convolution, and ReLU6 if wanted, without gradient."""
    if x.dtype in FUSED_TYPES:
        activation, bounds = ("hardtanh", [0.0, 6.0]) if relu6 else ("none", [])
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, [padding] * 2, [stride] * 2, [1, 1], groups, activation, bounds, "")
        return fused
    y = F.conv2d(x, weight, None if bias is None else bias.to(x.dtype), stride, padding, 1, groups)
    return F.hardtanh_(y, 0.0, 6.0) if relu6 else y


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d, relu6: bool, dtype: torch.dtype, mean: Tensor | None = None) -> Layer:
    """Fold a BatchNorm with frozen statistics into the convolution before it.

    Args:
        conv: The convolution.
        norm: The BatchNorm.
        relu6: Whether ReLU6 follows.
        dtype: Type of the computation.
        mean: Mean (I,) of each input channel. With it the shift takes back what rounding the kernel to ``dtype`` moves the output by, on average
            (bias correction; Nagel et al., 2019, "Data-Free Quantization through Weight Equalization and Bias Correction").
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # (O,)
    exact, bias = conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale
    weight = exact.to(dtype)
    if mean is not None and dtype is not exact.dtype:
        lost = (exact - weight).sum((2, 3))  # (O, I / groups)
        bias = bias + (lost @ mean if conv.groups == 1 else lost.squeeze(1) * mean)
    padding = (conv.kernel_size[0] - 1) // 2
    if conv.stride[0] == 2:
        weight = F.pad(weight, (1, 0, 1, 0)).contiguous(memory_format=torch.channels_last)  # (O, I / groups, K + 1, K + 1)
    return Layer(conv, norm, weight, bias.to(torch.promote_types(dtype, torch.float32)), padding, relu6)


def _blocks(tower: nn.Module) -> Iterator[tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d, bool]], bool]]:
    """Convolution, norm and whether ReLU6 follows, layer by layer from input to output, grouped by block; and whether the block has a shortcut."""
    net: Any = tower
    yield [(net.conv_stem, net.bn1, True)], False
    for stage in net.blocks:
        for block in stage:
            if hasattr(block, "conv_pwl"):
                yield [(block.conv_pw, block.bn1, True), (block.conv_dw, block.bn2, True), (block.conv_pwl, block.bn3, False)], block.has_skip
            else:
                yield [(block.conv_dw, block.bn1, True), (block.conv_pw, block.bn2, False)], block.has_skip
    yield [(net.conv_head, net.bn2, True)], False


def forward_features(tower: nn.Module, images: Tensor) -> Tensor:
    """Last feature map of timm's ``tf_efficientnet_lite0`` in evaluation mode, with gradients for BatchNorm scales and shifts, and for the images.

    Equal to ``tower.forward_features(images)`` up to rounding, and that is what runs where the rewriting does not apply: other devices, trainable
    convolutions, statistics in training, and sides that are no multiple of 32.

    Args:
        tower: The network.
        images: (B, 3, H, W), normalised.

    Returns:
        (B, 1280, H / 32, W / 32), in the autocast type if autocast is on, else in that of the images.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
    trained = torch.is_grad_enabled() and any(layer.weight.requires_grad for layer in tower.modules() if isinstance(layer, nn.Conv2d))
    if images.device.type != "cpu" or dtype is torch.float16 or trained or tower.training or any(side % TOTAL_STRIDE for side in images.shape[-2:]):
        features: Tensor = tower.forward_features(images)  # type: ignore[operator]
        return features
    with torch.no_grad():
        blocks = _folded(tower, dtype)
    chunks = images.split(max(1, CHUNK_BYTES // dtype.itemsize))
    return torch.cat([_run(blocks, chunk) for chunk in chunks])


def _folded(tower: nn.Module, dtype: torch.dtype) -> Blocks:
    """The folded layers: made once inside ``parametrize.cached()``, which the engine opens around the chunks of a batch, else every time."""
    # Private to torch; without it everything is folded for each chunk.
    kept: dict[Any, Any] | None = getattr(parametrize, "_cache", None) if getattr(parametrize, "_cache_enabled", 0) else None
    if kept is None:
        return _fold_all(tower, dtype)
    key = (id(tower), f"lite0 {dtype}")
    if key not in kept:
        kept[key] = _fold_all(tower, dtype)
    blocks: Blocks = kept[key]
    return blocks


def _fold_all(tower: nn.Module, dtype: torch.dtype) -> Blocks:
    place, wide = count(), torch.promote_types(dtype, torch.float32)
    blocks: Blocks = []
    mean: Tensor | None = None
    for layers, shortcut in _blocks(tower):
        folded, start = [], mean
        for layer in layers:
            folded.append(fold(*layer, wide if next(place) < WIDE_LAYERS else dtype, mean))
            mean = _output_mean(*layer[1:]) if dtype is torch.bfloat16 else None
        if shortcut and start is not None and mean is not None:
            mean = start + mean
        blocks.append((folded, shortcut))
    return blocks


def _output_mean(norm: nn.BatchNorm2d, relu6: bool) -> Tensor:
    """Mean (O,) of each channel after a layer, as far as its BatchNorm knows: of a Gaussian with mean beta and deviation gamma, cut by ReLU6."""
    if not relu6:
        return norm.bias
    deviation = norm.weight.abs().clamp(min=1e-6)

    def above(mean: Tensor) -> Tensor:
        z = mean / deviation
        return mean * torch.special.ndtr(z) + deviation * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)

    return above(norm.bias) - above(norm.bias - 6)


def _run(blocks: Blocks, x: Tensor) -> Tensor:
    for layers, shortcut in blocks:
        start = x
        for layer in layers:
            x = layer(x)
        if shortcut:
            # A layer with gradient has kept its output, which must not change.
            x = x + start if x.requires_grad else x.add_(start)
    return x
