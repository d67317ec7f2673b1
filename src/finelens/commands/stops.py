"""How a run ends before its end: Ctrl-C, SIGTERM, and a verdict that the user did not want."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from finelens.core.launch import launched
from finelens.core.schemas import CHECKPOINT_DIR, CONFIG_FILE, PREDICTIONS_FILE, VERDICTS
from finelens.core.voice import INTERRUPTED, JUDGED
from finelens.errors import Interrupted, UserError


@contextmanager
def graceful_stop(run: Path) -> Iterator[Callable[[], bool]]:
    """Yields ``should_stop`` for the training loop: the first Ctrl-C finishes the step and saves, the second stops at once."""

    asked = False
    training = False
    rank, processes = launched()

    def should_stop() -> bool:
        nonlocal training
        training = True
        return asked

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and processes > 1:
            # A terminal and torchrun both pass a single Ctrl-C on. It is torchrun that loses patience.
            return
        if asked or not training:
            asked = True
            raise KeyboardInterrupt
        asked = True
        if rank == 0:
            again = "; Ctrl-C again stops at once" if processes == 1 else ""
            click.echo(f"\nfinishing this step and saving{again}", err=True)

    # torchrun and schedulers end processes with SIGTERM.
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield should_stop
    except (Interrupted, KeyboardInterrupt):
        if rank == 0:
            click.echo(_stopped(run), err=True)
        sys.exit(INTERRUPTED)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_stopped(kept: str) -> NoReturn:
    """End a command that Ctrl-C stopped.

    Args:
        kept: What is left of it, and how to go on.
    """
    click.echo(f"\nstopped; {kept}", err=True)
    sys.exit(INTERRUPTED)


def encoded_any() -> bool:
    """Whether this process has put encoded photographs into the cache; a process that was stopped early has not even imported what does so."""
    rows = sys.modules.get("finelens.storage.rows")
    return rows is not None and rows.rows_kept() > 0


def exit_by_verdict(run: Path, fail_on: str | None) -> None:
    """Leave with a code of its own where the run's verdict is as bad as the user said, or worse.

    Of the processes of a run the first one judges, and all leave with its code.
    """
    if fail_on is None:
        return
    from finelens.engine.distributed import met
    from finelens.runs.judge import read_level

    processes = met()
    refused = processes.first and VERDICTS.index(read_level(run)) >= VERDICTS.index(fail_on.replace("-", " "))
    try:
        refused = bool(processes.first_value(float(refused)))
    except UserError:
        # Another process that is gone takes nothing back of a run that is whole.
        if not processes.first:
            raise
    if refused:
        sys.exit(JUDGED)


def _stopped(run: Path) -> str:
    """What is left of a run that was interrupted, and how to go on."""
    if (run / CHECKPOINT_DIR).is_dir() and any((run / CHECKPOINT_DIR).glob("*.safetensors")):
        return f"stopped; finelens resume {run} goes on from the last checkpoint"
    if (run / PREDICTIONS_FILE).is_file():
        return f"stopped; the answers are in {run / PREDICTIONS_FILE}, and finelens resume {run} does the rest"
    if (run / CONFIG_FILE).is_file():
        return f"stopped before there was a checkpoint; finelens resume {run} starts again, with the photographs that were encoded in the cache"
    return "stopped; nothing was written yet: the same command begins again, with what was encoded in the cache"
