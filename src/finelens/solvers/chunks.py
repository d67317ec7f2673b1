"""Rows some at a time, so that memory does not grow with their number."""

from __future__ import annotations


def chunks(count: int, size: int) -> list[slice]:
    """Slices of at most ``size`` of ``count`` rows, in order.

    Where one is enough it is all rows. An exporter can follow that, for which the count (``x.shape[0]``; ``len`` would fix it) is a symbol.
    """
    return [slice(None)] if count <= size else [slice(start, start + size) for start in range(0, count, size)]
