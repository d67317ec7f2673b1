"""What stands beside a path that leads nowhere: for the remedy in a message."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from finelens.core.options import nearest

# A folder of photographs may hold a million names, of which none is the class list.
_MOST = 2000


def check_the_path(path: str | Path) -> str:
    """The remedy for a file or folder that is not there: the name nearest to it in the first folder that is, else to check the path."""
    missing = Path(path)
    while not missing.parent.exists() and missing.parent != missing:
        missing = missing.parent
    try:
        with os.scandir(missing.parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST) if not entry.name.startswith(".")]
    except OSError:
        names = []
    near = nearest(missing.name, sorted(names))
    return "check the path" if near is None else f"did you mean {missing.parent / near}?"
