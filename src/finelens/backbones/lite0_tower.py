"""EfficientNet-Lite0 (Tan and Le, 2019; Liu, 2020) in torch's own modules, named and ordered as timm's ``tf_efficientnet_lite0``.

Importing timm takes longer than a whole run on cached features; a test holds the two to the same names, shapes, values and gradients.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

STEM, HEAD, EXPANSION = 32, 1280, 6
# TensorFlow's.
NORM_EPS = 1e-3
# Width, kernel, stride of the first block, number of blocks.
STAGES = ((16, 3, 1, 1), (24, 3, 2, 2), (40, 5, 2, 2), (80, 3, 2, 3), (112, 5, 1, 3), (192, 5, 2, 4), (320, 3, 1, 1))


class SameConv(nn.Conv2d):
    """A convolution without bias and with TensorFlow's "same" padding, which is longer at the end where it is uneven."""

    def __init__(self, width: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(width, out, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, O, ceil(H / stride), ceil(W / stride)) of (B, I, H, W)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            height, width = (max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(x)


class NormRelu6(nn.BatchNorm2d):
    """BatchNorm and ReLU6."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) of the same."""
        return F.hardtanh(super().forward(x), 0.0, 6.0, inplace=True)


class Block(nn.Module):
    """An inverted residual; without expansion a depthwise separable convolution."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.has_skip = stride == 1 and width == out
        inner = expansion * width
        self.bn2: nn.BatchNorm2d
        if expansion > 1:
            self.conv_pw, self.bn1 = SameConv(width, inner, 1), NormRelu6(inner, NORM_EPS)
            self.conv_dw, self.bn2 = SameConv(inner, inner, kernel, stride, inner), NormRelu6(inner, NORM_EPS)
            self.conv_pwl, self.bn3 = SameConv(inner, out, 1), nn.BatchNorm2d(out, NORM_EPS)
        else:
            self.conv_dw, self.bn1 = SameConv(inner, inner, kernel, stride, inner), NormRelu6(inner, NORM_EPS)
            self.conv_pw, self.bn2 = SameConv(inner, out, 1), nn.BatchNorm2d(out, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, O, h, w) of (B, I, H, W)."""
        y = x
        for layer in self.children():
            y = layer(y)
        return y + x if self.has_skip else y


class Lite0Tower(nn.Module):
    """The modules from pixels to the last feature map; :mod:`finelens.backbones.lite0` runs them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = SameConv(3, STEM, 3, 2), NormRelu6(STEM, NORM_EPS)
        self.blocks = nn.Sequential()
        widths = pairwise((STEM, *(width for width, *_ in STAGES)))
        for place, ((width, out), (_, kernel, stride, count)) in enumerate(zip(widths, STAGES, strict=True)):
            expansion = EXPANSION if place else 1
            rest = (Block(out, out, kernel, 1, expansion) for _ in range(count - 1))
            self.blocks.append(nn.Sequential(Block(width, out, kernel, stride, expansion), *rest))
        self.conv_head, self.bn2 = SameConv(STAGES[-1][0], HEAD, 1), NormRelu6(HEAD, NORM_EPS)
