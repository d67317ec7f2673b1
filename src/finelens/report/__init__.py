"""The report of a run: one HTML file that opens offline, and the model card.

The package can be called: ``finelens.report("run")`` is :func:`finelens.api.report`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """The verb ``report`` and the package that does its work share a name."""

    def __call__(self, *args: Any, **given: Any) -> Any:
        from finelens.api import report

        return report(*args, **given)


sys.modules[__name__].__class__ = _Callable
