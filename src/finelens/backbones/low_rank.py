"""Scopes that train a few numbers per weight matrix: LoRA (Hu et al., ICLR 2022) and singular values (CLIP-SVD, Koleilat et al., 2025).

While a scope is in use, a matrix W is the parametrisation ``W + delta`` of itself; ``delta`` starts at exactly zero. Afterwards the sum becomes the
plain weight. A fused query-key-value projection counts as three matrices, a 1x1 convolution as one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from finelens.images.randomness import generator


@dataclass(frozen=True)
class Matrix:
    """A weight inside a tower that is one matrix, or three of one shape below each other.

    Attributes:
        name: As the backbone's state calls it.
        module: Owner.
        attribute: Name of the weight in its owner.
        parts: Number of matrices.
    """

    name: str
    module: nn.Module
    attribute: str
    parts: int = 1


def find_matrices(root: nn.Module, blocks: Sequence[nn.Module]) -> list[Matrix]:
    """Linear maps inside the blocks: projections of attention, linear layers and 1x1 convolutions, in registration order.

    Args:
        root: Module that gives the names.
        blocks: Modules to search; embedding, pooling and projections around them are left out.
    """
    inside = {id(module) for block in blocks for module in block.modules()}
    found = []
    for name, module in root.named_modules():
        if id(module) not in inside:
            continue
        if isinstance(getattr(module, "in_proj_weight", None), Tensor):
            found.append(Matrix(f"{name}.in_proj_weight", module, "in_proj_weight", 3))
        elif isinstance(module, nn.Linear) or _is_pointwise(module):
            found.append(Matrix(f"{name}.weight", module, "weight", 3 if name.endswith(".qkv") else 1))
    return found


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


class Delta(nn.Module):
    """A change of one weight that is zero at first."""

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight, of the shape of ``weight``, in its own float type whatever the precision around it."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.delta().reshape(weight.shape)

    @abstractmethod
    def delta(self) -> Tensor:
        """The change, (P, O, I)."""


class LoraDelta(Delta):
    """``B A`` of rank r. B starts at zero, A uniform in +-1 / sqrt(I) (the usual start), a function of the weight's name only.

    Args:
        weight: (P O, I) or (P O, I, 1, 1).
        parts: P.
        rank: r; no more than the matrix has.
        name: Of the weight.
    """

    def __init__(self, weight: Tensor, parts: int, rank: int, name: str) -> None:
        super().__init__()
        p, rows, columns = _split(weight, parts).shape
        r = min(rank, rows, columns)
        draw = 2 * torch.from_numpy(generator(0, 0, name, "lora").random((p, r, columns))) - 1
        self.down = nn.Parameter(draw.to(weight) / math.sqrt(columns), requires_grad=False)  # A, (P, r, I)
        self.up = nn.Parameter(weight.new_zeros(p, rows, r), requires_grad=False)  # B, (P, O, r)

    def delta(self) -> Tensor:
        """``B A``."""
        return self.up @ self.down


class SingularValueDelta(Delta):
    """``U diag(s) V^T - W`` for ``W = U diag(s_0) V^T`` (thin SVD): only ``s - s_0`` is a parameter, and rounding cannot move the start.

    Args:
        weight: (P O, I) or (P O, I, 1, 1).
        parts: P.
    """

    def __init__(self, weight: Tensor, parts: int) -> None:
        super().__init__()
        u, s, vt = torch.linalg.svd(_split(weight, parts), full_matrices=False)  # (P, O, r), (P, r), (P, r, I)
        self.register_buffer("u", u.contiguous())
        self.register_buffer("vt", vt.contiguous())
        self.u: Tensor
        self.vt: Tensor
        # One axis, as scales of norm layers have, which weight decay leaves alone.
        self.shift = nn.Parameter(torch.zeros_like(s).flatten(), requires_grad=False)  # s - s_0, (P r,)

    def delta(self) -> Tensor:
        """``U diag(s - s_0) V^T``."""
        return (self.u * self.shift.view(len(self.u), 1, -1)) @ self.vt


def _split(weight: Tensor, parts: int) -> Tensor:
    return weight.detach().reshape(parts, len(weight) // parts, -1)  # (P, O, I)


def install(matrices: Sequence[Matrix], make: Callable[[Matrix, Tensor], Delta]) -> dict[str, nn.Parameter]:
    """Parametrise matrices, unless they are already, and return the small parameters by name.

    Args:
        matrices: From :func:`find_matrices`.
        make: The change of a matrix, from its plain weight.
    """
    parameters: dict[str, nn.Parameter] = {}
    for matrix in matrices:
        if not parametrize.is_parametrized(matrix.module, matrix.attribute):
            delta = make(matrix, getattr(matrix.module, matrix.attribute))
            parametrize.register_parametrization(matrix.module, matrix.attribute, delta, unsafe=True)
        parametrisations: Any = matrix.module.parametrizations
        parameters |= {f"{matrix.name}.{name}": parameter for name, parameter in parametrisations[matrix.attribute][0].named_parameters()}
    return parameters


def merge(root: nn.Module) -> None:
    """Make every parametrised weight inside ``root`` a plain one of the same value."""
    _make_plain(root, keep=True)


def undo(root: nn.Module) -> None:
    """Make every parametrised weight inside ``root`` a plain one of the value it had before."""
    _make_plain(root, keep=False)


def _make_plain(root: nn.Module, *, keep: bool) -> None:
    for module in list(root.modules()):
        if parametrize.is_parametrized(module):
            parametrisations: Any = module.parametrizations
            for name in list(parametrisations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=keep)


def is_changed(root: nn.Module) -> bool:
    """Whether a weight inside ``root`` is parametrised."""
    return any(parametrize.is_parametrized(module) for module in root.modules())


def plain_state(root: nn.Module) -> dict[str, Tensor]:
    """``root.state_dict()`` as it would be after :func:`merge`; tensors share memory with the plain weights among them."""
    state = dict(root.state_dict())
    for prefix, module in root.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        parametrisations: Any = module.parametrizations
        start = f"{prefix}." if prefix else ""
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{start}parametrizations.")}
        with torch.no_grad():
            state |= {f"{start}{name}": getattr(module, name) for name in parametrisations}
    return state
