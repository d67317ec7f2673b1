"""Cells of CSV files that no spreadsheet computes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

# Without it at the beginning of a file Excel takes other letters than English ones for others.
BOM = "\ufeff"
# A cell that a spreadsheet would compute gets one apostrophe more; counting the apostrophes that are there already keeps the rule reversible.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_FIRST = frozenset("'=+-@\t\r")
_ESCAPED = re.compile(r"'+[=+\-@\t\r]")


def escape_cell(cell: str) -> str:
    """A text as a cell that no spreadsheet computes; :func:`unescape_cell` gives it back."""
    # Older csv readers refuse the null character; no file name and no sensible class holds one.
    if "\0" in cell:
        cell = cell.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return "'" + cell if cell[:1] in _FIRST and _FORMULA.match(cell) else cell


def unescape_cell(cell: str) -> str:
    """The text that a cell was written from: without the apostrophe that keeps a spreadsheet from computing it."""
    return cell[1:] if cell[:1] == "'" and _ESCAPED.match(cell) else cell


def csv_text(lines: Iterable[Iterable[str]]) -> str:
    """Cells as lines of a CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    return text.getvalue()


def for_spreadsheets(text: str) -> str:
    """The content of a table that a person will open in a spreadsheet: with a byte-order mark where it holds other letters than English ones."""
    return text if text.isascii() else BOM + text
