"""Tuning scopes shared by all image towers: which parameters a method may train."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from finelens.backbones.low_rank import LoraDelta, Matrix, SingularValueDelta, find_matrices, install
from finelens.errors import UserError

NORM_TYPES: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.RMSNorm)

_LAST_K = re.compile(r"last-([1-9]\d*)-norm")
_LORA = re.compile(r"lora-([1-9]\d{0,3})")


@dataclass(frozen=True)
class Scope:
    """A parsed scope.

    Attributes:
        kind: ``none``, ``norm`` (normalisation layers), ``lora``, ``svd`` (singular values) or ``all`` (every parameter).
        last_blocks: Only the last so many blocks and what follows them; None means the whole tower.
        rank: Rank of ``lora``.
    """

    kind: Literal["none", "norm", "lora", "svd", "all"]
    last_blocks: int | None = None
    rank: int = 0


def parse_scope(scope: str, n_blocks: int) -> Scope:
    """Parse ``none``, ``norm``, ``last-k-norm``, ``lora-r``, ``svd`` or ``all``.

    Args:
        scope: What the user asked for.
        n_blocks: Blocks of the tower; 0 if it has no notion of depth.

    Raises:
        UserError: Unknown scope, or more blocks than the tower has; the message lists the scopes that exist.
    """
    if scope == "none":
        return Scope("none")
    if scope == "norm":
        return Scope("norm")
    if scope == "all":
        return Scope("all")
    if n_blocks:
        if scope == "svd":
            return Scope("svd")
        if match := _LORA.fullmatch(scope):
            return Scope("lora", rank=int(match[1]))
        if (match := _LAST_K.fullmatch(scope)) and int(match[1]) <= n_blocks:
            return Scope("norm", last_blocks=int(match[1]))
    depth = f"norm, last-k-norm with k from 1 to {n_blocks}, lora-r with a rank r such as lora-4, svd" if n_blocks else "norm"
    raise UserError(f"unknown tuning scope {scope!r} for this image tower: use one of {depth}, all, none")


def last_blocks(scope: str) -> int:
    """The k of ``last-k-norm``.

    Raises:
        ValueError: Another scope.
    """
    match = _LAST_K.fullmatch(scope)
    if match is None:
        raise ValueError(f"{scope!r} is not a scope of the last blocks")
    return int(match[1])


def norm_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Affine parameters of all normalisation layers inside ``module``, in registration order."""
    # A layer of timm's own can be there only where timm has been imported.
    timm_layers = sys.modules.get("timm.layers")
    types = NORM_TYPES if timm_layers is None else (*NORM_TYPES, timm_layers.RmsNorm)
    return [p for layer in module.modules() if isinstance(layer, types) for p in layer.parameters(recurse=False)]


def select_parameters(
    root: nn.Module, scope: str, *, trunk: nn.Module, blocks: Sequence[nn.Module], final: Sequence[nn.Module]
) -> dict[str, nn.Parameter]:
    """Parameters that training a scope of the image tower ``trunk`` moves, under the names that ``root`` gives them.

    ``last-k-norm`` takes the norm layers of the last k blocks and of ``final``. ``lora-r`` and ``svd`` parametrise the matrices inside the blocks,
    which :func:`finelens.backbones.low_rank.merge` undoes; asking again returns the same parameters.

    Args:
        root: Module whose ``named_parameters`` gives the names; contains ``trunk``.
        scope: See :func:`parse_scope`.
        trunk: The image tower.
        blocks: Its blocks from input to output.
        final: Its modules after the last block.

    Returns:
        Name to parameter, in registration order.

    Raises:
        UserError: Unknown scope.
    """
    parsed = parse_scope(scope, len(blocks))
    if parsed.kind == "lora":
        return install(_matrices(root, scope, blocks), lambda matrix, weight: LoraDelta(weight, matrix.parts, parsed.rank, matrix.name))
    if parsed.kind == "svd":
        return install(_matrices(root, scope, blocks), lambda matrix, weight: SingularValueDelta(weight, matrix.parts))
    return _plain_parameters(root, parsed, trunk, blocks, final)


def select_text(root: nn.Module, scope: str, blocks: Sequence[nn.Module]) -> dict[str, nn.Parameter]:
    """Parameters that training a scope of a text tower moves, under the names that ``root`` gives them.

    Args:
        root: Contains the blocks.
        scope: ``svd``.
        blocks: Of the text tower.

    Raises:
        UserError: Another scope.
    """
    if scope != "svd":
        raise UserError(f"unknown tuning scope {scope!r} for a text tower: use svd")
    return install(_matrices(root, scope, blocks), lambda matrix, weight: SingularValueDelta(weight, matrix.parts))


def select_adapted(root: nn.Module, scope: str, *, trunk: nn.Module, blocks: Sequence[nn.Module], final: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Plain weights that are different after training a scope and merging; nothing is parametrised. Arguments as for :func:`select_parameters`.

    Parameters, or computed values of them while the scope is in use.
    """
    parsed = parse_scope(scope, len(blocks))
    if parsed.kind in ("lora", "svd"):
        return {matrix.name: getattr(matrix.module, matrix.attribute) for matrix in _matrices(root, scope, blocks)}
    return dict(_plain_parameters(root, parsed, trunk, blocks, final))


def _plain_parameters(
    root: nn.Module, scope: Scope, trunk: nn.Module, blocks: Sequence[nn.Module], final: Sequence[nn.Module]
) -> dict[str, nn.Parameter]:
    if scope.kind == "none":
        return {}
    sources = [trunk] if scope.last_blocks is None else [*blocks[-scope.last_blocks :], *final]
    chosen = {id(p) for source in sources for p in (norm_parameters(source) if scope.kind == "norm" else source.parameters())}
    return {name: p for name, p in root.named_parameters() if id(p) in chosen}


def _matrices(root: nn.Module, scope: str, blocks: Sequence[nn.Module]) -> list[Matrix]:
    matrices = find_matrices(root, blocks)
    if not matrices:
        raise UserError(f"tuning scope {scope!r} needs linear layers or 1x1 convolutions inside the blocks, and this tower has none; use norm")
    return matrices
