"""Files of image-text pairs: CSV with two columns, or JSON Lines with two keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finelens.classes.hand_tables import read_table
from finelens.classes.text_files import listing, quote, read_utf8
from finelens.errors import UserError

KIND = "captions file"
# The first of these that a file has.
IMAGE_COLUMNS = ("image", "path", "file_name", "filename", "filepath", "image_path")
TEXT_COLUMNS = ("text", "caption", "title", "description")


@dataclass(frozen=True)
class Captions:
    """What a file says.

    Attributes:
        files: Place of each pair's image.
        texts: Its text.
    """

    files: tuple[Path, ...]
    texts: tuple[str, ...]


def read_captions(path: Path, photos: Path | None) -> Captions:
    """Read image-text pairs; an image may have several texts, a row each.

    Args:
        path: A ``.jsonl`` file, or CSV of any other name.
        photos: Folder of the run; names of images are relative to the folder of the file, else to this one.

    Raises:
        UserError: It cannot be read, holds no pairs, or names images that are not there.
    """
    what = f"{KIND} {quote(str(path))}"
    rows = _of_jsonl(path, what) if path.suffix.lower() in (".jsonl", ".ndjson") else _of_csv(path, what)
    for line, image, text in rows:
        if not image.strip() or not text.strip() or "\0" in image:
            raise UserError(f"{what}, line {line}: {'no image' if not image.strip() else 'no text'}; give an image and its text in every row")
    if len(rows) < 2:
        raise UserError(f"{what} has {'one pair' if rows else 'no pairs'}; give at least two, a row for each image and text")
    places = {name: _place(name, path.parent, photos) for name in dict.fromkeys(image.strip() for _, image, _ in rows)}
    lost = [name for name, place in places.items() if place is None]
    if lost:
        where = f"in {path.parent}" + ("" if photos is None else f" or in {photos}")
        raise UserError(f"{what}: {len(lost)} of {len(places)} images are not there ({listing([quote(name) for name in lost])}); names count {where}")
    found = [(places[image.strip()], text.strip()) for _, image, text in rows]
    return Captions(tuple(place for place, _ in found if place is not None), tuple(text for _, text in found))


def _place(name: str, *folders: Path | None) -> Path | None:
    try:
        return next((place for folder in folders if folder is not None and (place := folder / name).is_file()), None)
    except OSError:
        return None


def _of_csv(path: Path, what: str) -> list[tuple[int, str, str]]:
    table = read_table(path, KIND, (*IMAGE_COLUMNS, *TEXT_COLUMNS))
    header = [cell.lower() for cell in table.header]
    image_at, text_at = (header.index(_column(header, names, what)) for names in (IMAGE_COLUMNS, TEXT_COLUMNS))
    for line, cells in table.rows:
        if len(cells) != len(header):
            raise UserError(f"{what}, line {line}: expected {len(header)} cells, got {len(cells)}; quote cells that hold commas")
    return [(line, cells[image_at], cells[text_at]) for line, cells in table.rows]


def _of_jsonl(path: Path, what: str) -> list[tuple[int, str, str]]:
    rows: list[tuple[int, str, str]] = []
    for number, line in enumerate(read_utf8(path, KIND).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f'{what}, line {number}: not JSON; write {{"image": "a.jpg", "text": "a red fox"}}, one a line') from None
        if not isinstance(entry, dict):
            raise UserError(f'{what}, line {number}: no object; write {{"image": "a.jpg", "text": "a red fox"}}, one a line')
        image, text = (entry[_column(list(entry), names, f"{what}, line {number}")] for names in (IMAGE_COLUMNS, TEXT_COLUMNS))
        if not isinstance(image, str) or not isinstance(text, str):
            raise UserError(f"{what}, line {number}: the image and its text must be texts in quotation marks")
        rows.append((number, image, text))
    return rows


def _column(header: Sequence[str], names: Sequence[str], what: str) -> str:
    found = next((name for name in names if name in header), None)
    if found is None:
        has = listing([quote(cell) for cell in header]) or "nothing"
        raise UserError(f"{what} lacks the column {names[0]} (or {', '.join(names[1:])}); found {has}; give one for images and one for texts")
    return found
