"""How many processes a run was started in, as ``torchrun`` says it in the environment. It imports no tensor library."""

from __future__ import annotations

import os

from finelens.errors import UserError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> tuple[int, int]:
    """Number of this process, from 0, and the number of all: (0, 1) where nobody started several.

    Raises:
        UserError: The environment is set but makes no sense.
    """
    if any(name not in os.environ for name in NEEDED):
        return 0, 1
    try:
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except ValueError:
        rank, count = -1, 0
    if not 0 <= rank < count:
        raise UserError(
            f"RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']} are not the numbers of a process and of all processes; "
            "start with torchrun, or unset them"
        )
    port = os.environ["MASTER_PORT"]
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"MASTER_PORT={port} is not the number of a port; start with torchrun, or unset it")
    return rank, count
