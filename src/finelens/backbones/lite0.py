"""EfficientNet-Lite0 on a CPU: its modules run as convolution, scale, shift and ReLU6 in one pass over memory each.

The tower's time goes into moving large activations, not into arithmetic. Three exact rewritings save most of the moving:

* a BatchNorm with frozen statistics is a scale and a shift per channel, which go into the convolution before it, and ReLU6 is applied as it writes;
* "same" padding of a stride-2 convolution on an even side is one row and one column longer at the end than at the start; a zero row and column at the
  start of the kernel make it symmetric, so that nothing has to be copied into a padded array;
* a training step needs no activation but each layer's output. With ``y = gamma * x_hat + beta``, the normalised input of a BatchNorm is
  ``x_hat = (y - beta) / gamma``, hence ``dL/dgamma = sum(g * (y - beta)) / gamma`` and ``dL/dbeta = sum(g)``, g being the gradient where ReLU6 is
  open (the idea of in-place activated BatchNorm, Rota Bulo et al., 2018, for frozen statistics and frozen convolutions).

A single layer waits for memory on one core or on many, so cores take different images: each runs its chunk of the batch through all layers, and back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from finelens.core.private_torch import fused_convolution, fused_convolution_takes_bfloat16, outside_compiler, pack_kernel, parametrization_cache
from finelens.core.threads import side_by_side

# Bytes of an element times images in one go: the largest activation then stays near the last-level cache and below the size (32 MiB) from which the C
# allocator returns memory to the system after every use.
CHUNK_BYTES = 16
# A channel with |beta| > MAX_RATIO |gamma| loses x_hat in the rounding of y; its layer keeps its input as well.
MAX_RATIO = 256.0
# Shapes of the input that a layer's kernel is kept laid out for.
MOST_SHAPES = 4
# Layers from the input on that stay in float32. The output of the stem goes into depthwise kernels with weights up to 18 that nearly cancel: rounding
# it to bfloat16 alone moves the tower's feature by 4 %.
WIDE_LAYERS = 2


@dataclass(frozen=True)
class Layer:
    """A frozen convolution with the BatchNorm after it folded in.

    Attributes:
        conv: The module.
        norm: The module that owns gamma and beta.
        weight: Scaled kernel (O, I / groups, K, K) in the type of the computation.
        bias: Shift (O,) in float32 or wider: it is large where it cancels a large mean.
        padding: Zeros on each side.
        relu6: Whether ReLU6 follows.
        packed: The kernel in the layout of the fused kernels, by the shape of the input: the same numbers, so the same bits come out.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    weight: Tensor
    bias: Tensor
    padding: int
    relu6: bool
    packed: dict[torch.Size, Tensor] = field(default_factory=dict)

    def run(self, x: Tensor) -> Tensor:
        """Output (B, O, h, w) of x (B, I, H, W), in the layer's type."""
        x = x.to(self.weight.dtype)
        return convolve(x, self._kernel(x), self.bias, self.conv.stride[0], self.padding, self.conv.groups, self.relu6)

    def _kernel(self, x: Tensor) -> Tensor:
        if pack_kernel is None or x.dtype not in FUSED_TYPES:
            return self.weight
        kernel = self.packed.get(x.shape)
        if kernel is None:
            kernel = pack_kernel(self.weight, [self.padding] * 2, list(self.conv.stride), [1, 1], self.conv.groups, list(x.shape))
            # Batches of many sizes, as requests bring them, must not fill the memory.
            if len(self.packed) >= MOST_SHAPES:
                self.packed.clear()
            self.packed[x.shape] = kernel
        return kernel

    @property
    def can_divide(self) -> bool:
        """Whether the normalised input can be had from the output."""
        return bool((self.norm.bias.abs() < MAX_RATIO * self.norm.weight.abs()).all())

    def norm_gradients(self, g: Tensor, x: Tensor | None, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients (O,) of gamma and beta from that of the output before ReLU6, (B, O, h, w).

        Args:
            g: The gradient.
            x: Input (B, I, H, W); None if the scale can be divided by.
            y: Output (B, O, h, w).
        """
        gamma, beta = self.norm.weight.detach(), self.norm.bias.detach()
        if x is None:
            # With mean beta and variance 1 this is sum(g * (y - beta)) and sum(g), in one pass.
            z, mean, variance, eps = y, beta, torch.ones_like(beta), 0.0
        else:
            assert self.norm.running_mean is not None
            assert self.norm.running_var is not None
            kernel = _symmetric(self.conv.weight.detach().to(g.dtype), self.conv.stride[0])
            z = convolve(x.to(g.dtype), kernel, None, self.conv.stride[0], self.padding, self.conv.groups, False)  # (B, O, h, w)
            mean, variance, eps = self.norm.running_mean, self.norm.running_var, self.norm.eps
        _, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(g, z, gamma, mean, variance, None, None, False, eps, [False, True, True])
        return dgamma / gamma if x is None else dgamma, dbeta

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


Blocks: TypeAlias = "list[tuple[list[Layer], bool]]"


@dataclass(frozen=True)
class _Folded:
    """The folded layers of a frozen tower.

    Attributes:
        dtype: Type of the computation.
        tensors: Copies of what they were folded from.
        blocks: The layers.
    """

    dtype: torch.dtype
    tensors: list[Tensor]
    blocks: Blocks


# To fold the layers and to lay out their kernels takes as long as two images: most of what a request of one costs.
_FROZEN: WeakKeyDictionary[nn.Module, _Folded] = WeakKeyDictionary()

FUSED_TYPES = {torch.float32} if fused_convolution is not None and "AVX" in torch.backends.cpu.get_cpu_capability() else set()
if FUSED_TYPES and fused_convolution_takes_bfloat16():
    FUSED_TYPES.add(torch.bfloat16)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int, relu6: bool) -> Tensor:
    """Convolution, and ReLU6 if wanted, without gradient."""
    if fused_convolution is not None and x.dtype in FUSED_TYPES:
        activation, bounds = ("hardtanh", [0.0, 6.0]) if relu6 else ("none", [])
        fused: Tensor = fused_convolution(x, weight, bias, [padding] * 2, [stride] * 2, [1, 1], groups, activation, bounds, "")
        return fused
    if x.dtype is torch.bfloat16:
        # As the fused kernel does it where there are units for it: sums and shifts in float32, rounded once.
        return convolve(x.float(), weight.float(), bias, stride, padding, groups, relu6).to(x.dtype)
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
    return Layer(conv, norm, _symmetric(weight, conv.stride[0]), bias.to(torch.promote_types(dtype, torch.float32)), padding, relu6)


def _symmetric(kernel: Tensor, stride: int) -> Tensor:
    """Kernel (O, I / groups, K, K) whose "same" padding is as long at the end as at the start: (O, I / groups, K + 1, K + 1) for stride 2."""
    return kernel if stride == 1 else F.pad(kernel, (1, 0, 1, 0)).contiguous(memory_format=torch.channels_last)


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


def _modules(tower: nn.Module) -> list[nn.Module]:
    """The plain modules, one for each entry of :func:`_blocks`."""
    net: Any = tower
    blocks = [block for stage in net.blocks for block in stage]
    return [nn.Sequential(net.conv_stem, net.bn1), *blocks, nn.Sequential(net.conv_head, net.bn2)]


def forward_features(tower: nn.Module, images: Tensor) -> Tensor:
    """Last feature map of timm's ``tf_efficientnet_lite0`` in evaluation mode, with gradients for BatchNorm scales and shifts, and for the images.

    Equal to ``tower.forward_features(images)`` up to rounding, and the plain modules are what runs where the rewriting does not apply: other devices,
    trainable convolutions, statistics in training, and sides that are no multiple of 32.

    Args:
        tower: The network.
        images: (B, 3, H, W), normalised.

    Returns:
        (B, 1280, H / 32, W / 32), in the autocast type if autocast is on, else in that of the images.
    """
    return _forward(tower, images, slice(None))


@torch.no_grad()
def forward_prefix(tower: nn.Module, images: Tensor, last_blocks: int) -> Tensor:
    """Feature map (B, C, h, w) of normalised images (B, 3, H, W) before the last so many residual blocks, without gradient."""
    return _forward(tower, images, slice(None, -1 - last_blocks))


def forward_suffix(tower: nn.Module, prefix: Tensor, last_blocks: int) -> Tensor:
    """What :func:`forward_features` returns, from what :func:`forward_prefix` gave."""
    return _forward(tower, prefix, slice(-1 - last_blocks, None))


def _exporting() -> bool:
    """Whether torch.export follows; torch 2.6 has no such question, and what is exported there fails its check."""
    return bool(getattr(torch.compiler, "is_exporting", bool)())


def _forward(tower: nn.Module, x: Tensor, part: slice) -> Tensor:
    """Some of the stem, the residual blocks and the head, one after another, on their input (B, C, h, w)."""
    x = x.contiguous(memory_format=torch.channels_last)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    trained = torch.is_grad_enabled() and any(layer.weight.requires_grad for layer in tower.modules() if isinstance(layer, nn.Conv2d))
    # A multiple of all strides together is even at every stride-2 layer.
    stride = math.prod(conv.stride[0] for layers, _ in list(_blocks(tower))[part] for conv, _, _ in layers)
    odd = any(side % stride for side in x.shape[-2:])
    # An exporter needs operators that it knows.
    if x.device.type != "cpu" or dtype is torch.float16 or trained or tower.training or odd or _exporting():
        for module in _modules(tower)[part]:
            x = module(x)
        return x
    return _features(tower, x, dtype, part)


@outside_compiler
def _features(tower: nn.Module, x: Tensor, dtype: torch.dtype, part: slice) -> Tensor:
    with torch.no_grad():
        blocks = _folded(tower, dtype)[part]
    norms = [parameter for layers, _ in blocks for layer in layers for parameter in (layer.norm.weight, layer.norm.bias)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *norms)):
        features: Tensor = _Trained.apply(blocks, x, *norms)
        return features
    return torch.cat(side_by_side(lambda chunk: _run(blocks, chunk)[0], _chunks(blocks, x)))


def _chunks(blocks: Blocks, images: Tensor) -> Sequence[Tensor]:
    """Parts of a batch, no larger than stays in cache, and one for each core where there are images enough.

    Their size is a power of two: the engine's full chunks are divided evenly, so that an image is computed alike at any place of its chunk.
    """
    size, cores = max(1, CHUNK_BYTES // blocks[-1][0][-1].weight.itemsize), torch.get_num_threads()
    while size > 1 and math.ceil(len(images) / size) < min(cores, len(images)):
        size //= 2
    return images.split(size)


def _folded(tower: nn.Module, dtype: torch.dtype) -> Blocks:
    """The folded layers: of a frozen tower those of its last call, else made once inside ``parametrize.cached()``, which the engine opens around the
    chunks of a batch, else every time."""
    kept = parametrization_cache()
    # Without it everything is folded for each chunk.
    if kept is None:
        return _of_last_call(tower, dtype)
    key = (id(tower), f"lite0 {dtype}")
    if key not in kept:
        kept[key] = _of_last_call(tower, dtype)
    blocks: Blocks = kept[key]
    return blocks


def _of_last_call(tower: nn.Module, dtype: torch.dtype) -> Blocks:
    tensors = [*tower.parameters(), *tower.buffers()]
    computed = any(parametrize.is_parametrized(module) for module in tower.modules())
    if computed or any(tensor.requires_grad for tensor in tensors):
        _FROZEN.pop(tower, None)
        return _fold_all(tower, dtype)
    kept = _FROZEN.get(tower)
    # By content: what is written through ``.data`` leaves no trace, and to compare takes a quarter of the time that folding takes.
    if kept is None or kept.dtype is not dtype or not all(map(_equal, kept.tensors, tensors)):
        kept = _FROZEN[tower] = _Folded(dtype, [tensor.clone() for tensor in tensors], _fold_all(tower, dtype))
    return kept.blocks


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype is b.dtype and torch.equal(a, b)


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


@dataclass(frozen=True)
class _Kept:
    """What one layer keeps of one chunk for its gradients.

    Attributes:
        x: Input (B, I, H, W), where gamma cannot be divided by; else None.
        y: Output (B, O, h, w); None where the layer takes no part in a backward.
        shape: Of the input.
    """

    x: Tensor | None
    y: Tensor | None
    shape: torch.Size


def _run(blocks: Blocks, x: Tensor, first: int | None = None, inputs: Sequence[int] = ()) -> tuple[Tensor, list[_Kept]]:
    """Last output, and what is kept of each layer: its output from layer ``first`` on, and its input where its place is among ``inputs``."""
    kept: list[_Kept] = []
    for layers, shortcut in blocks:
        start = x
        for layer in layers:
            place, before = len(kept), x
            x = layer.run(before)
            kept.append(_Kept(before if place in inputs else None, x if first is not None and place >= first else None, before.shape))
        if shortcut:
            x = x + start if kept[-1].y is not None else x.add_(start)
    return x, kept


def _run_back(
    blocks: Blocks, kept: list[_Kept], g: Tensor, first: int, wanted: Sequence[bool], images_too: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of one chunk.

    Args:
        blocks: The layers.
        kept: Of each layer.
        g: Gradient of the last output, (B, O, h, w).
        first: First layer that takes part.
        wanted: Whether gamma or beta of each layer wants a gradient.
        images_too: Whether the images do.

    Returns:
        Gradient of the images, and those of gamma and beta of each layer in turn.
    """
    place = len(kept)
    found: list[Tensor | None] = [None] * (2 * place)
    for layers, shortcut in reversed(blocks):
        end = g
        for layer in reversed(layers):
            place -= 1
            x, y, shape = kept[place].x, kept[place].y, kept[place].shape
            assert y is not None
            g = g.to(y.dtype)
            if layer.relu6:
                g = torch.ops.aten.hardtanh_backward(g, y, 0.0, 6.0)
            if wanted[place]:
                found[2 * place : 2 * place + 2] = layer.norm_gradients(g, x, y)
            if place == first and not images_too:
                return None, found
            g = layer.input_gradient(g, shape)
        if shortcut:
            g = g.add_(end)
    return g, found


class _Trained(torch.autograd.Function):
    """The tower with gradients for the images and for gamma and beta of its norms."""

    @staticmethod
    def forward(ctx: Any, blocks: Blocks, images: Tensor, *norms: Tensor) -> Tensor:
        layers = [layer for layers, _ in blocks for layer in layers]
        ctx.images_too = ctx.needs_input_grad[1]
        ctx.wanted = [any(ctx.needs_input_grad[2 + 2 * k : 4 + 2 * k]) for k in range(len(layers))]
        ctx.first = 0 if ctx.images_too else ctx.wanted.index(True)
        inputs = [k for k, layer in enumerate(layers) if ctx.needs_input_grad[2 + 2 * k] and not layer.can_divide]
        chunks = _chunks(blocks, images)
        parts = side_by_side(lambda chunk: _run(blocks, chunk, ctx.first, inputs), chunks)
        ctx.blocks, ctx.sizes, ctx.type = blocks, [len(chunk) for chunk in chunks], images.dtype
        ctx.shapes = [[kept.shape for kept in part] for _, part in parts]
        # Checkpointing and the check for parameters changed in place see only what is saved here.
        ctx.save_for_backward(*norms, *(tensor for _, part in parts for kept in part for tensor in (kept.x, kept.y)))
        return torch.cat([features for features, _ in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        layers = len(ctx.wanted)
        saved = ctx.saved_tensors[2 * layers :]
        kept = [
            [_Kept(saved[2 * (part * layers + k)], saved[2 * (part * layers + k) + 1], shape) for k, shape in enumerate(shapes)]
            for part, shapes in enumerate(ctx.shapes)
        ]
        work = list(zip(kept, grad.split(ctx.sizes), strict=True))
        parts = side_by_side(lambda part: _run_back(ctx.blocks, *part, ctx.first, ctx.wanted, ctx.images_too), work)
        images = torch.cat([dx.to(ctx.type) for dx, _ in parts if dx is not None]) if ctx.images_too else None
        norms = [None if own[0] is None else sum(own[1:], own[0]) for own in zip(*(found for _, found in parts), strict=True)]
        return None, images, *norms
