"""Tuning scopes shared by all image towers: which parameters a method may train."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import timm.layers
from torch import nn

from finelens.errors import UserError

NORM_TYPES: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.RMSNorm, timm.layers.RmsNorm)

_LAST_K = re.compile(r"last-([1-9]\d*)-norm")


@dataclass(frozen=True)
class Scope:
    """A parsed scope.

    Attributes:
        norm_only: Normalisation layers only; False means every parameter.
        last_blocks: Only the last so many blocks and what follows them; None means the whole tower.
    """

    norm_only: bool
    last_blocks: int | None = None


def parse_scope(scope: str, n_blocks: int) -> Scope:
    """Parse ``norm``, ``last-k-norm`` or ``all``.

    Args:
        scope: What the user asked for.
        n_blocks: Blocks of the tower; 0 if it has no notion of depth.

    Raises:
        UserError: Unknown scope, or more blocks than the tower has; the message lists the scopes that exist.
    """
    if scope == "norm":
        return Scope(norm_only=True)
    if scope == "all":
        return Scope(norm_only=False)
    match = _LAST_K.fullmatch(scope)
    if match and int(match[1]) <= n_blocks:
        return Scope(norm_only=True, last_blocks=int(match[1]))
    depth = f", last-k-norm with k from 1 to {n_blocks}" if n_blocks else ""
    raise UserError(f"unknown tuning scope {scope!r} for this image tower: use one of norm{depth}, all")


def norm_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Affine parameters of all normalisation layers inside ``module``, in registration order."""
    return [p for layer in module.modules() if isinstance(layer, NORM_TYPES) for p in layer.parameters(recurse=False)]


def select_parameters(
    root: nn.Module, scope: str, *, trunk: nn.Module, blocks: Sequence[nn.Module], final: Sequence[nn.Module]
) -> dict[str, nn.Parameter]:
    """Parameters of a scope of the image tower ``trunk``, under the names that ``root`` gives them.

    ``last-k-norm`` takes the norm layers of the last k blocks and of ``final``, the modules after the last block.

    Args:
        root: Module whose ``named_parameters`` gives the names; contains ``trunk``.
        scope: ``norm``, ``last-k-norm`` or ``all``.
        trunk: The image tower.
        blocks: Its blocks from input to output.
        final: Its modules after the last block.

    Returns:
        Name to parameter, in registration order.

    Raises:
        UserError: Unknown scope.
    """
    parsed = parse_scope(scope, len(blocks))
    sources = [trunk] if parsed.last_blocks is None else [*blocks[-parsed.last_blocks :], *final]
    chosen = {id(p) for source in sources for p in (norm_parameters(source) if parsed.norm_only else source.parameters())}
    return {name: p for name, p in root.named_parameters() if id(p) in chosen}
