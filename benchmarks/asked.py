"""The command that made a row, as anybody can give it."""

from __future__ import annotations

import sys
from pathlib import Path


def data_command() -> str:
    """This call of a benchmark whose first argument is the folder of data sets; of files only the names, since folders are of one machine."""
    said = [Path(argument).name if Path(argument).is_absolute() else argument for argument in sys.argv[2:]]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", "DATA", *said])
