"""Paths that begin with ``~``."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with the home folder in the place of ``~``; one that begins with the name of nobody here stays: it may be a file's."""
    return Path(os.path.expanduser(path))
