"""How many examples a property is tried on: few in the suite, many with ``FINELENS_FUZZ=1000 pytest tests/faults``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from finelens.errors import UserError

EXAMPLES = int(os.environ.get("FINELENS_FUZZ", "40"))


def attempt(call: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None]:
    """What a call gives and None, or None and the one line with which it refuses; anything else it raises is a fault and passes through."""
    try:
        return call(*arguments), None
    except UserError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    return None, message
