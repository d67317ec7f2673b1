"""What libraries that read images say by themselves while they read: what it means stands in the file's row, and they do not name the file."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARIES = ("PIL", "pillow_heif", "pillow_jxl", "tifffile", "imagecodecs", "rawpy", "pydicom")

_lock = threading.Lock()
_inside = 0
_before: warnings.catch_warnings[None] | None = None
_listening = False


@contextmanager
def unheard() -> Iterator[None]:
    """Warnings of these libraries go nowhere meanwhile. Of threads inside, the first changes the filters and the last restores them."""
    global _inside, _before
    if _listening:
        yield
        return
    with _lock:
        if not _inside:
            _before = warnings.catch_warnings()
            _before.__enter__()
            warnings.filterwarnings("ignore", module=rf"({'|'.join(_LIBRARIES)})(\.|$)")
            _without_last_resort()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside and _before is not None:
                _before.__exit__(None, None, None)


@contextmanager
def heard() -> Iterator[None]:
    """For whoever wants to know what they say: :func:`unheard` has no effect meanwhile, in no thread."""
    global _listening
    _listening = True
    try:
        yield
    finally:
        _listening = False


def _without_last_resort() -> None:
    """Their loggers write to standard error only where the program has set up logging."""
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
