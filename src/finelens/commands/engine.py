"""``--engine``: where the parts of a command are computed. Documentation: docs/engine.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from finelens.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])
_engine = click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="ray: on a cluster (docs/engine.md)."
)
_ray_address = click.option("--ray-address", help="Of the cluster, for --engine ray.  [default: RAY_ADDRESS, else this machine alone]")


def engine_options(command: F) -> F:
    """``--engine`` and ``--ray-address``."""
    return _engine(_ray_address(command))


def check_engine(engine: str, ray_address: str | None) -> None:
    """Refuse an address without the engine that it is of."""
    if ray_address is not None and engine != "ray":
        raise UserError("--ray-address has an effect with --engine ray only")
