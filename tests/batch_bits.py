"""A pytest plugin: ``pytest -p tests.batch_bits`` makes the last bits of every matrix product depend on its number of rows.

So do the kernels of some processors, Intel's with AVX512 and AMX among them. On others a test that compares the bits of one batch with those of
another may pass by luck; with this plugin it fails on all. The promise that tests may state is about the same batch: see the README.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LIBRARY = torch.library.Library("aten", "IMPL")
# A few units in the last place, as sums in another order differ.
UNITS = 2


def spoiled(out: Tensor, rows: int) -> Tensor:
    """The product with an error that the number of rows alone decides."""
    if not out.is_floating_point():
        return out
    units = (rows * 2654435761 >> 8) % (2 * UNITS + 1) - UNITS
    # A sum of whole numbers is exact in any order.
    return torch.where(out == out.round(), out, out * (1 + units * torch.finfo(out.dtype).eps))


def mm(a: Tensor, b: Tensor) -> Tensor:
    out = a.new_empty(a.shape[0], b.shape[1])
    return spoiled(torch.ops.aten.mm.out(a, b, out=out), a.shape[0])


def addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    out = a.new_empty(a.shape[0], b.shape[1])
    return spoiled(torch.ops.aten.addmm.out(bias, a, b, beta=beta, alpha=alpha, out=out), a.shape[0])


def bmm(a: Tensor, b: Tensor) -> Tensor:
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    return spoiled(torch.ops.aten.bmm.out(a, b, out=out), math.prod(a.shape[:2]))


def mv(a: Tensor, b: Tensor) -> Tensor:
    return spoiled(torch.ops.aten.mv.out(a, b, out=a.new_empty(a.shape[0])), a.shape[0])


def conv2d(images: Tensor, *args: object, **kwargs: object) -> Tensor:
    return spoiled(_conv2d(images, *args, **kwargs), len(images))


for product in (mm, addmm, bmm, mv):
    LIBRARY.impl(product.__name__, product, "CPU", allow_override=True)
_conv2d, F.conv2d = F.conv2d, conv2d
