"""Values of the command line that must not be empty: an empty variable of a shell is a mistake, and as a path it would be the working directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_EMPTY = "the value is empty; give one, or leave it out"


class _GivenPath(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail(_EMPTY, param, ctx)
        return super().convert(value, param, ctx)


class _GivenText(click.types.StringParamType):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail(_EMPTY, param, ctx)
        return super().convert(value, param, ctx)


PATH = _GivenPath(path_type=Path)
"""A path as ``pathlib`` has it."""
TEXT = _GivenText()
"""A name, or what is a path in one of its forms."""
