"""What libraries that read images say by themselves while they read: what it means stands in the file's row, and they do not name the file."""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

_LIBRARIES = ("PIL", "pillow_heif", "pillow_jxl", "tifffile", "imagecodecs", "rawpy", "pydicom")

_MODULES = rf"({'|'.join(_LIBRARIES)})(\.|$)"
_FILTER = ("ignore", None, Warning, re.compile(_MODULES), 0)

_lock = threading.Lock()
_inside = 0
_lists: list[list[Any]] = []
_listening = False


@contextmanager
def unheard() -> Iterator[None]:
    """Warnings of these libraries go nowhere meanwhile. Of threads inside, the first adds a filter and the last removes it.

    ``warnings.catch_warnings`` would put other filters in the place of those that another thread has set meanwhile, for good.
    """
    global _inside
    if _listening:
        yield
        return
    with _lock:
        if not _inside:
            _lists.append(_filters())
            warnings.filterwarnings("ignore", module=_MODULES)
            _without_last_resort()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                # Another thread may have copied those that had it, or gone back to others.
                for filters in (*_lists, _filters()):
                    while _FILTER in filters:
                        filters.remove(_FILTER)
                _lists.clear()


@contextmanager
def heard() -> Iterator[None]:
    """For whoever wants to know what they say: :func:`unheard` has no effect meanwhile, in no thread."""
    global _listening
    _listening = True
    try:
        yield
    finally:
        _listening = False


def _filters() -> list[Any]:
    return cast(list[Any], warnings.filters)


def _without_last_resort() -> None:
    """Their loggers write to standard error only where the program has set up logging."""
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
