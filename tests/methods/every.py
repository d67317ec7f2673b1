"""Tests that run once for each method: of the module's ``METHODS``, so that one set of tests serves several lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finelens.methods.registry import Method


def every(kind: Callable[[Method], bool] = lambda method: True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a test the argument ``method``: the name of each method of a kind. ``conftest.py`` does it."""

    def mark(test: Callable[..., Any]) -> Callable[..., Any]:
        test.of_methods = kind
        return test

    return mark
