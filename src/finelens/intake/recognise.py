"""Which form a file is of, by what is in it; its name says nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from finelens.classes.hand_tables import split_table
from finelens.classes.text_files import read_user_json, read_utf8, split_lines
from finelens.errors import UserError
from finelens.images.discover import display_name
from finelens.intake.camera_traps import camtrap_dp, coco, wildlife_insights
from finelens.intake.contents import Contents, objects
from finelens.intake.detectors import megadetector, speciesnet
from finelens.intake.labelling import cvat, label_studio
from finelens.intake.tables import imagefolder, pybioclip

WHAT = "file of --in"
# Boxes that a detector is less sure of are left out.
CONFIDENCE = 0.2
_READ = (
    "MegaDetector, COCO Camera Traps, SpeciesNet and Label Studio JSON, CVAT 1.1 XML, pybioclip and Wildlife Insights CSV, "
    "Camtrap DP (datapackage.json or its folder), and metadata of a Hugging Face image folder"
)
_METADATA = ("metadata.csv", "metadata.jsonl")
_PACKAGE = "datapackage.json"
# Columns by which tables are told from one another; a person may have saved one in a spreadsheet.
_COLUMNS = ("file_name", "score", "deployment_id", "filename", "location", "mediaID", "filePath")


def read_contents(path: Path, photos: Path, confidence: float = CONFIDENCE) -> Contents:
    """Read a file of another tool.

    Args:
        path: The file; for a Camtrap DP or an image folder also its folder.
        photos: Folder of the photographs.
        confidence: Boxes of a detector that are less sure are left out.

    Raises:
        UserError: It cannot be read, or is of no form that is known.
    """
    if path.is_dir():
        inside = next((path / name for name in (_PACKAGE, *_METADATA) if (path / name).is_file()), None)
        if inside is None:
            raise UserError(f"{display_name(path)} is a folder without {_PACKAGE} or metadata.csv; --in takes {_READ}")
        path = inside
    text = read_utf8(path, WHAT)
    start = text.lstrip()[:1]
    where = display_name(path)
    if start == "<":
        return cvat(text, where)
    if start in ("{", "["):
        lines = _json_lines(text)
        return imagefolder(lines, _below(path, photos)) if lines is not None else _of_json(read_user_json(path, WHAT), path, confidence)
    return _of_table(_rows(text, where), path, photos)


def _of_json(document: Any, path: Path, confidence: float) -> Contents:
    where = display_name(path)
    if isinstance(document, list):
        return label_studio(objects(document, where), where)
    keys = set(document)
    if {"images", "detection_categories"} <= keys:
        return megadetector(document, confidence, where)
    if {"images", "categories"} <= keys:
        return coco(document, where)
    if keys & {"predictions", "instances"}:
        return speciesnet(document, confidence, where)
    if "resources" in keys:
        return camtrap_dp(document, _media(document, path))
    raise UserError(f"{where} is JSON of another form (its keys are {', '.join(sorted(keys)[:8])}); --in takes {_READ}")


def _of_table(rows: Sequence[Mapping[str, str]], path: Path, photos: Path) -> Contents:
    columns = set(rows[0]) if rows else set()
    if "score" in columns and "file_name" in columns:
        return pybioclip(rows)
    if {"deployment_id", "filename"} <= columns or {"deployment_id", "location"} <= columns:
        return wildlife_insights(rows)
    if "file_name" in columns:
        return imagefolder(rows, _below(path, photos))
    if {"mediaID", "filePath"} <= columns:
        return camtrap_dp({}, rows)
    found = f"its columns are {', '.join(sorted(columns)[:8])}" if columns else "it has no rows"
    raise UserError(f"{display_name(path)} is no file that is known here ({found}); --in takes {_READ}")


def _rows(text: str, where: str) -> list[Mapping[str, str]]:
    try:
        header, rows = split_table(text, where, _COLUMNS)
    except UserError as error:
        raise UserError(f"{error}; --in takes {_READ}") from error
    return [{name: cell.strip() for name, cell in zip_longest(header, cells[: len(header)], fillvalue="") if name} for _, cells in rows]


def _json_lines(text: str) -> list[Mapping[str, Any]] | None:
    """Objects of a file of one JSON object a line, each with a ``file_name``; None for any other JSON."""
    first, *_ = lines = [line for line in split_lines(text) if line.strip()]
    try:
        if "file_name" not in json.loads(first):
            return None
        return [row for row in map(json.loads, lines) if isinstance(row, dict)]
    except (ValueError, TypeError, RecursionError):
        return None


def _media(description: Mapping[str, Any], path: Path) -> list[Mapping[str, str]]:
    listed = description.get("resources")
    resources = [own for own in (listed if isinstance(listed, list) else []) if isinstance(own, dict)]
    named = next((own.get("path") for own in resources if own.get("name") == "media"), None)
    if not isinstance(named, str) or Path(named).is_absolute() or ".." in Path(named).parts or "://" in named:
        raise UserError(f"{display_name(path)} does not name a resource media in its own folder; give a Camtrap DP that lies on this disk")
    media = path.parent / named
    return _rows(read_utf8(media, "media of the Camtrap DP"), display_name(media))


def _below(path: Path, photos: Path) -> str:
    """Path of a file's folder below the photographs; empty where it is that folder, or lies elsewhere."""
    folder, root = path.absolute().parent, photos.absolute()
    return "" if folder == root or not folder.is_relative_to(root) else folder.relative_to(root).as_posix()
