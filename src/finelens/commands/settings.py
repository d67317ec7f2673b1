"""``--config FILE``, and ``finelens config RUN`` that writes such a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from finelens.core.console import Console
from finelens.core.given import PATH
from finelens.core.voice import voice
from finelens.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])
# Where the sections of a file wait for the verb, in the context of the command.
_SECTIONS = "finelens.sections"
# What a verb may make.
_TARGETS = ("out",)


def config_option(command: F) -> F:
    """``--config``: what the file says holds where the command line says nothing."""
    return click.option(
        "--config",
        type=PATH,
        is_eager=True,
        expose_value=False,
        callback=_read,
        help="TOML file of options, as finelens config RUN writes it; the command line goes before.",
    )(command)


def _read(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    from finelens.runs.repeat import read_options

    known = {_key(parameter): str(parameter.name) for parameter in context.command.params if parameter is not option}
    values, context.meta[_SECTIONS] = read_options(path, str(context.info_name), known.keys() - {"set", "help"})
    context.default_map = {known[key]: value for key, value in values.items()}


def _key(parameter: click.Parameter) -> str:
    return max(parameter.opts, key=len).removeprefix("--")


def sections_of_file() -> dict[str, dict[str, Any]]:
    """Values by section and key of the file that the running command was given; empty without one."""
    sections: dict[str, dict[str, Any]] = click.get_current_context().meta.get(_SECTIONS, {})
    return {section: dict(values) for section, values in sections.items()}


def check_files_of_file() -> None:
    """Refuse a path that the file of ``--config`` names and that leads nowhere: what has moved since is said on the command line.

    Raises:
        UserError: There is such a path; the message says how to give another one.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        path = context.params.get(name)
        if not isinstance(path, Path) or name in _TARGETS or context.get_parameter_source(name) is not ParameterSource.DEFAULT_MAP:
            continue
        if not path.exists():
            given = f"{max(parameter.opts, key=len)} PATH" if isinstance(parameter, click.Option) else parameter.human_readable_name
            raise UserError(
                f"{path} does not exist, which the file of --config names ({_key(parameter)}); if it has moved, give {given} on the command line, "
                "which goes before the file"
            )


@click.command()
@voice
@click.argument("run", type=PATH)
def config(run: Path, console: Console) -> None:
    """Print the options of RUN as TOML, which adapt --config FILE repeats.

    Paths are those of the run, in full; the folder of the new run is not among them.
    """
    from finelens.core.options import to_plain
    from finelens.runs.folder import RunFolder
    from finelens.runs.repeat import moved, to_toml

    found = RunFolder.open(run, lock=False).config
    text = to_toml(found)
    for option, path in moved(found):
        console.warn(f"{path} does not exist any more: with --config give {option} on the command line as well, which goes before the file")
    console.answer(text.rstrip("\n"), toml=text, config=to_plain(found))
