"""``finelens`` as a process that stands still at a known step of the training, however fast or slow the machine is.

    python tests/cli/held.py STEP FILE adapt PHOTOS ...

Before training step STEP, counted from 0, it writes FILE and waits: until it is killed, or until the handler of Ctrl-C has run. Of several processes
the second alone does; the others wait for it in their next exchange.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finelens.cli import main
from finelens.training import loop


def hold(file: Path) -> None:
    """Write the file, then wait for Ctrl-C and what is done about it."""
    handled: list[int] = []
    handler: Callable[..., Any] = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        handler(number, frame)
        handled.append(number)

    signal.signal(signal.SIGINT, handle)
    file.touch()
    while not handled:
        time.sleep(0.01)
    signal.signal(signal.SIGINT, handler)


def hold_before(step: int, file: Path) -> None:
    """Let the training stand still before this step."""
    set_lr = loop.set_lr
    steps = iter(range(10**6))

    def counted(*arguments: Any) -> None:
        if next(steps) == step:
            hold(file)
        set_lr(*arguments)

    loop.set_lr = counted


if __name__ == "__main__":
    if os.environ.get("RANK", "1") == "1":
        hold_before(int(sys.argv[1]), Path(sys.argv[2]))
    main(sys.argv[3:])
