"""How a command speaks: ``--quiet`` and ``--json`` of every verb, and exit codes. Documentation: docs/command.md."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

from finelens.core.console import Console, EventConsole
from finelens.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

MISTAKE = 2
# Of --fail-on.
JUDGED = 3
INTERRUPTED = 130
# Letters of a name that is too long for a message.
SHOWN = 60


def voice(command: F) -> F:
    """``--quiet`` and ``--json``; the verb gets a ``console``."""

    @click.option("--quiet", is_flag=True, help="Say nothing but warnings and errors.")
    @click.option("--json", "as_events", is_flag=True, help="Say everything as JSON, an object a line, on standard output (docs/command.md).")
    @functools.wraps(command)
    def speaking(*args: Any, quiet: bool, as_events: bool, **given: Any) -> Any:
        return speak(command, *args, quiet=quiet, as_events=as_events, **given)

    return cast(F, speaking)


def voice_of_run(command: F) -> F:
    """:func:`voice` of a verb that makes a run, and ``--verbose``."""
    return click.option("--verbose", is_flag=True, help="Say also what the method finds inside, and with which settings.")(voice(command))


def speak(command: Callable[..., Any], *args: Any, quiet: bool, as_events: bool, verbose: bool = False, **given: Any) -> Any:
    """Run a verb with the console that its options ask for; for another program the last event says how it ended."""
    if verbose and (quiet or as_events):
        raise UserError("--quiet says nothing, --json everything, and --verbose more than usual; give one of them")
    if not as_events:
        return _done(command, *args, console=Console(enabled=not quiet, verbose=verbose), **given)
    if quiet:
        raise UserError("--quiet says nothing and --json everything; give one of them")
    console = EventConsole()
    try:
        result = _done(command, *args, console=console, **given)
    except UserError as error:
        console.tell("error", text=" ".join(error.message.split()))
        raise
    except SystemExit as stop:
        # A verdict that the user did not want ends a run that is finished all the same.
        event = {INTERRUPTED: "interrupted", JUDGED: "end"}.get(stop.code if isinstance(stop.code, int) else 0, "error")
        console.tell(event, **({} if event == "end" else {"text": ""}))
        raise
    console.tell("end")
    return result


def _done(command: Callable[..., Any], *args: Any, **given: Any) -> Any:
    """What a verb returns; a list typed where a file is meant, and what may not be looked at, are mistakes like others, wherever first looked up."""
    try:
        return command(*args, **given)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM) and error.filename is not None:
            what = f"{os.fsdecode(error.filename)}: {error.strerror}"
            raise UserError(f"cannot look at {what}; make the folders that it lies in readable, or give another path") from error
        if error.errno != errno.ENAMETOOLONG:
            raise
        start = str(error.filename)[:SHOWN]
        raise UserError(f"{start!r}...: no file has a name that long; give the path of a file, not what is in it") from error
