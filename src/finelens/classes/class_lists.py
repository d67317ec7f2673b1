"""Class lists that spreadsheets and other tools wrote: tables are read as tables, and lines that are no plain names are refused with the remedy."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from finelens.classes.hand_tables import MARKS, SAVE, spreadsheet_text, without_mark
from finelens.classes.text_files import is_comment, quote
from finelens.errors import UserError
from finelens.storage.cells import unescape_cell

TABLE_SUFFIXES = (".csv", ".tsv")
WAY_OUT = "if they are names all the same, write them as a list in a .json file"

# What tables call the column of names, the likeliest first.
_HEADERS = ("name", "class_name", "classname", "class", "label_name", "label", "species", "scientific_name", "category", "names", "classes", "labels")
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SYNSET = re.compile(r"n\d{8}\b")
_NUMBERED = re.compile(r"(\d+)(\s*[,:;)]\s*|\.?\s+)\S")
_COUNTED = re.compile(r"\S.*?\s*[,;]\s*(\d+)")
_QUOTED = re.compile(r"([\"']).*\1,?")
_YAML_KEY = re.compile(r"[\w-]+:")
_YAML_ITEM = re.compile(r"-\s+\S|\d+:\s+\S|['\"]?[\w ]+['\"]?:\s+\d+$")


def refuse_other_than_names(names: Sequence[str], source: str, as_table: Path | None = None) -> None:
    """Refuse a list whose lines, taken together, are evidently something else than one plain name each. A single line may be anything.

    Args:
        names: Lines of a text file or cells of a table.
        source: Where they come from, for messages.
        as_table: The text file, which may be a table under another name; None for a table.

    Raises:
        UserError: They are; the message says what was seen, and the remedy.
    """
    if len(names) < 2:
        return
    first, rest = names[0], names[1:]
    if first.lower() in _HEADERS:
        raise UserError(f"{source}: the first line, {quote(first)}, is the header of a table: remove it{_renamed(as_table)}; {WAY_OUT}")
    if first[0] in "[{" and names[-1][-1] in "]}":
        raise UserError(f"{source}: this is a list of a programming language: call the file .json if it is JSON, or write one plain name a line")
    if (_YAML_KEY.fullmatch(first) and all(map(_YAML_ITEM.match, rest))) or all(re.match(r"-\s", name) for name in names):
        raise UserError(f"{source}: this is YAML: write one plain name a line, without keys, numbers and dashes; {WAY_OUT}")
    for found, what, remedy in (
        (all(map(_QUOTED.fullmatch, names)), "stands in quotation marks", "remove them"),
        (all(name.endswith(",") for name in names[:-1]), "ends with a comma", "remove it"),
        (all(map(_SYNSET.match, names)), "begins with a WordNet number", "write the words; a classes.json tells which folder is which class"),
        (all(map(_GUID.search, names)), "holds a GUID", "write words that the model can read"),
        (_numbered(names), "has a number of its own", "remove the numbers"),
        (any(_same_count(names, mark) for mark in ";|"), "holds several cells", "keep the names alone"),
    ):
        if found:
            raise UserError(f"{source}: every line {what} (the first is {quote(first)}): {remedy}{_renamed(as_table)}; {WAY_OUT}")


def _renamed(file: Path | None) -> str:
    """What follows a remedy where the file would be read under the name of a table, or with a first line besides."""
    if file is None:
        return ""
    try:
        names, _ = names_in_table(file, "class file")
        refuse_other_than_names(names, "")
    except ColumnsError as error:
        return f", or call the file .csv and begin it with the line {error.header}"
    except UserError:
        return ""
    return ", or call the file .csv"


class ColumnsError(UserError):
    """A table that does not say which of its columns holds the names.

    Attributes:
        header: A first line that says the first does.
    """

    def __init__(self, source: str, width: int, mark: str) -> None:
        self.header = mark.join(["name", "note", *(f"note{number}" for number in range(2, width))])
        remedy = f"keep that one only, or call it name in the first line, as in {self.header}"
        super().__init__(f"{source} has {width} columns and does not say which holds the names: {remedy}")


def _numbered(names: Sequence[str]) -> bool:
    """Whether running numbers stand before or behind the names; before a comma or colon any numbers that rise."""
    before, behind = [_NUMBERED.match(name) for name in names], [_COUNTED.fullmatch(name) for name in names]
    if all(before):
        numbers = [int(found[1]) for found in before if found]
        if all(found[2].strip() not in ("", ".") for found in before if found):
            return numbers == sorted(set(numbers))
        return _running(numbers)
    return all(behind) and _running([int(found[1]) for found in behind if found])


def _running(numbers: Sequence[int]) -> bool:
    return numbers[0] in (0, 1) and list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))


def _same_count(names: Sequence[str], mark: str) -> bool:
    return names[0].count(mark) > 0 and len({name.count(mark) for name in names}) == 1


def names_in_table(path: str | Path, what: str) -> tuple[list[str], list[str]]:
    """Read the names of a table in CSV: its only column, or the one that a header calls ``name``, ``class`` or the like, or the only one of words.

    Cells are separated by commas, semicolons or tabs, the same throughout.

    Args:
        path: The file.
        what: What it is to the user, for messages.

    Returns:
        Names, and the line of each.

    Raises:
        UserError: It cannot be read, or it does not say which cells are names.
    """
    source = f"{what} {quote(str(path))}"
    told, text, before = without_mark(spreadsheet_text(path, what))
    parsed = {mark: _rows(text, mark, source, before) for mark in told or MARKS}
    # The separator is the one that makes a table, all of whose rows have as many cells.
    mark = next((mark for mark, own in parsed.items() if len({len(cells) for _, cells in own}) == 1 and len(own[0][1]) > 1), (told or MARKS)[0])
    rows = parsed[mark]
    if not rows:
        return [], []
    width = len(rows[0][1])
    odd = next((line for line, cells in rows if len(cells) != width), None)
    if odd is not None:
        raise UserError(f"{source}, line {odd}: it has another number of cells than the first; quote names that hold commas, or call the file .txt")
    header = [cell.strip().lower().replace(" ", "_") for cell in rows[0][1]]
    body = rows[1:] if len(rows) > 1 and set(header) & set(_HEADERS) else rows
    column = _column(header if body is not rows else [], [cells for _, cells in body], source, mark)
    return [unescape_cell(cells[column].strip()) for _, cells in body], [f"line {line}" for line, _ in body]


def _rows(text: str, mark: str, source: str, before: int) -> list[tuple[int, list[str]]]:
    """Line and cells of each row that says something; ``before``: lines before the text."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    try:
        return [(before + reader.line_num, cells) for cells in reader if any(map(str.strip, cells)) and not is_comment(cells[0].strip())]
    except csv.Error as error:
        raise UserError(f"{source}, line {before + reader.line_num}: {error}; {SAVE}, or call the file .txt") from error


def _column(header: Sequence[str], body: Sequence[Sequence[str]], source: str, mark: str) -> int:
    """Which column holds the names."""
    width = len(body[0])
    if width == 1:
        return 0
    # Numbers and identifiers name nothing; a column of them is one beside the names.
    words = [column for column in range(width) if not all(map(_no_word, (cells[column].strip() for cells in body)))]
    called = [header.index(name) for name in _HEADERS if name in header and header.index(name) in words]
    found = called[:1] or words
    if len(found) != 1:
        raise ColumnsError(source, width, mark)
    return found[0]


def _no_word(cell: str) -> bool:
    return not cell or bool(re.fullmatch(r"[-+]?\d+(\.\d+)?", cell) or _GUID.fullmatch(cell) or _SYNSET.fullmatch(cell))
