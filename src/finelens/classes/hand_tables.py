"""Tables that people write by hand, as spreadsheets of any country save them.

Cells are separated by commas, semicolons or tabs. The file is UTF-8 with or without a byte-order mark, UTF-16 with one, or Windows-1252, which Excel
writes in western Europe and America where it is not told otherwise.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from finelens.classes.text_files import not_utf8, quote, read_bytes, split_lines
from finelens.errors import UserError

MARKS = ",;\t"
MARKED = "separated by commas, semicolons or tabs"
SAVE = "save it as comma-separated values"
# A first line of Excel's that names the separator.
_SEP = re.compile(r"sep=(.)\r?\n")
# Words of west European languages that have letters beyond A to Z have at most so many of them; those of other scripts have no other.
_MOST_BEYOND = 0.75
_WORD = re.compile(r"[^\W\d_]{3,}")
# A letter beyond A to Z before a sign that no word goes on with: damaged UTF-8, or an encoding of two bytes a letter.
_CONTINUED = "\u00a1-\u00b6\u00b8-\u00ba\u00bc-\u00bf\u20ac\u201a\u0192\u201e\u2020\u2021\u02c6\u2030\u2039\u2022\u02dc\u2122"
_TORN = re.compile(f"[\u00c0-\u00ff\u0152\u0160\u017d\u0178][{_CONTINUED}]")


class Table(NamedTuple):
    """A table whose first line names its columns.

    Attributes:
        header: Names of the columns without surrounding white space; empty where the file is.
        rows: Line and cells of each further row that says something; how many cells there are is left to the caller.
    """

    header: list[str]
    rows: list[tuple[int, list[str]]]


def read_table(path: str | Path, what: str, columns: Collection[str]) -> Table:
    """Read a table.

    Args:
        path: The file.
        what: What it is to the user, for messages.
        columns: Names that columns may have; the separator is the one by which the first line has most of them.

    Raises:
        UserError: It cannot be read, or quotation marks in it do not pair.
    """
    return split_table(spreadsheet_text(path, what), f"{what} {quote(str(path))}", columns)


def split_table(text: str, source: str, columns: Collection[str]) -> Table:
    """The same for the content of a file; ``source`` is what messages call it.

    Raises:
        UserError: Quotation marks do not pair.
    """
    told, body, line = without_mark(text)
    first = next((own for own in split_lines(body) if own.strip()), "")
    known = {name.lower() for name in columns}
    mark = told or max(MARKS, key=lambda own: len(known & {cell.strip().lower() for cell in _cells(first, own)}))
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=mark, strict=True)
    try:
        rows = [(line + reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise UserError(f"{source}, line {line + reader.line_num}: {error}; {SAVE}") from error
    return Table([cell.strip() for cell in rows[0][1]], rows[1:]) if rows else Table([], [])


def _cells(line: str, mark: str) -> list[str]:
    """Cells of a first line; one that is no table says it where the whole is read."""
    return next(csv.reader([line], delimiter=mark), [])


def without_mark(text: str) -> tuple[str | None, str, int]:
    """The separator that a line ``sep=;`` before the table names, the table, and how many lines stand before it."""
    told = _SEP.match(text)
    return (told[1], text[told.end() :], 1) if told else (None, text, 0)


def spreadsheet_text(path: str | Path, what: str) -> str:
    """The text of a file that a spreadsheet may have saved.

    Windows-1252 cannot be told from other code pages for certain. What is evidently another one, as words that are hardly of the letters A to Z, or
    damaged UTF-8, is refused.

    Raises:
        UserError: The file cannot be read, or is in none of these encodings.
    """
    data = read_bytes(path, what)
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8"
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        text = None if encoding == "utf-16" else _windows_1252(data)
        if text is None:
            raise not_utf8(path, what, data, error) from None
        return text


def _windows_1252(data: bytes) -> str | None:
    """The text; None where it is evidently none."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    words = [word for word in _WORD.findall(text) if not word.isascii()]
    beyond = sum(not letter.isascii() for word in words for letter in word)
    return None if beyond > _MOST_BEYOND * sum(map(len, words)) or _TORN.search(text) else text
