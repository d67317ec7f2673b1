"""Groups of test images from a CSV file: ``path`` and a column for each way to sort them. Only ``evaluate`` reads groups."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from finelens.classes.file_names import FileNames
from finelens.classes.hand_tables import MARKED, read_table
from finelens.classes.text_files import quote
from finelens.errors import UserError
from finelens.storage.cells import unescape_cell

WHAT = "groups file"
# Values of a column from which it names images and no groups.
MOST = 50


def read_groups(path: Path, names: Iterable[str], folder: Path) -> tuple[dict[str, dict[str, str]], int]:
    """The columns of a groups file.

    Args:
        path: The file; its first line has ``path`` and at least one other name.
        names: Images, as their records name them.
        folder: Folder that paths in the file may start from.

    Returns:
        Value by image, by column, in the order of the file; an empty cell and a missing line give none. And how many lines are about other files.

    Raises:
        UserError: The file cannot be read, contradicts itself, or has a column of more than ``MOST`` values.
    """
    what = f"{WHAT} {quote(str(path))}"
    header, rows = read_table(path, WHAT, ("path",))
    columns = [name for name in header if name and name != "path"]
    if "path" not in header or not columns or len(set(header)) < len(header):
        raise UserError(f"{what}: its first line must name the column path and one column for each way to sort the photographs, each once, {MARKED}")
    found: dict[str, dict[str, str]] = {column: {} for column in columns}
    files, others = FileNames(names, folder), 0
    for line, cells in rows:
        where = f"{what}, line {line}"
        if len(cells) != len(header):
            raise UserError(f"{where}: expected {len(header)} cells, got {len(cells)}; quote cells that hold commas")
        meant = files.find(cells[header.index("path")])
        if len(meant) != 1:
            others += 1
            continue
        for column in columns:
            value = unescape_cell(cells[header.index(column)].strip())
            if value and found[column].setdefault(meant[0], value) != value:
                raise UserError(f"{where}: {quote(meant[0])} is in another group of {quote(column)} above; keep one of the two")
    many = next((column for column in columns if len(set(found[column].values())) > MOST), None)
    if many is not None:
        raise UserError(f"{what}: column {quote(many)} has more than {MOST} values, too many for groups; sort them into a few, or leave it out")
    if not any(found.values()):
        raise UserError(f"{what} says nothing of the labelled photographs; give paths relative to {quote(str(folder))}")
    return found, others
