"""Names of devices, as far as they can be judged without a tensor library."""

from __future__ import annotations

import re

from finelens.errors import UserError

_NAME = re.compile(r"(cpu|cuda|mps)(:\d{1,4})?")


def check_device_name(name: str) -> None:
    """Refuse what names no kind of device that is known.

    Raises:
        UserError: It does not.
    """
    if _NAME.fullmatch(name) is None:
        raise UserError(f"unknown device {name!r}; use cpu, cuda, cuda:0 or mps")
