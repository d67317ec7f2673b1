"""What ``--group-by`` asks for; read before any photograph is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finelens.errors import UserError

FOLDER, TIME, COLUMN = "folder", "time", "column"


@dataclass(frozen=True)
class GroupBy:
    """What ``--group-by`` asks for.

    Attributes:
        kind: ``folder``, ``time`` or ``column``.
        seconds: Longest time between two photographs of a burst.
        file: CSV file with the columns ``path`` and ``group``.
    """

    kind: str
    seconds: float = 0.0
    file: Path | None = None

    @classmethod
    def parse(cls, text: str) -> GroupBy:
        """Read ``folder``, ``time:SECONDS`` or ``column:FILE``.

        Raises:
            UserError: It is none of them.
        """
        kind, colon, rest = text.partition(":")
        if kind == FOLDER and not colon:
            return cls(FOLDER)
        if kind == TIME and rest.replace(".", "", 1).isdecimal() and float(rest) > 0:
            return cls(TIME, float(rest))
        if kind == COLUMN and rest:
            return cls(COLUMN, file=Path(rest))
        raise UserError(f"--group-by {text}: expected folder, time:SECONDS or column:FILE (a CSV file with the columns path,group)")


def absolute_groups(text: str) -> str:
    """What ``--group-by`` was given, with the file of groups by its whole path: a run can be resumed from any folder."""
    by = GroupBy.parse(text)
    return text if by.file is None else f"{COLUMN}:{by.file.absolute()}"
