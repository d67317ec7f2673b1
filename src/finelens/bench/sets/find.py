"""From what ``--data`` says to a data set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from finelens.bench.sets import webdataset
from finelens.bench.sets.corrupted import AT, corrupted, split_corruption
from finelens.bench.sets.data import DataSet
from finelens.bench.sets.elevater import index_files, read_elevater
from finelens.bench.sets.imagefolder import read_image_folder, test_folder
from finelens.bench.sets.lists import list_files, read_lists
from finelens.bench.sets.parquet import read_parquet, shards_of
from finelens.bench.sets.table import SETS, SetSpec
from finelens.errors import UserError


def find_data(text: str, root: Path | None) -> tuple[str, Callable[[], DataSet]]:
    """A data set's name and how to read it.

    Args:
        text: A folder, a name under ``root``, or the name of a set of :data:`SETS`; with ``@NAME:LEVEL`` behind it, test photographs are corrupted.
        root: Folder of data sets.

    Raises:
        UserError: There is no such folder, or the set is not there; the message says how to get it.
    """
    plain, corruption = split_corruption(text)
    if corruption is None or Path(text).exists():
        return _find(text, root)
    name, read = _find(plain, root)
    return f"{name}{AT}{corruption}", corrupted(read, corruption)


def _find(text: str, root: Path | None) -> tuple[str, Callable[[], DataSet]]:
    named = next((spec for spec in SETS if spec.name == text), None)
    whole = [] if named is None or root is None else [root / folder for folder in named.folder.split("|") if not _missing(named, root / folder)]
    place = whole[0] if whole else None
    for folder in [Path(text), *([] if root is None else [root / text])]:
        # The authors' layout may hold a folder train as well.
        reader = None if place is not None and folder.resolve() == place.resolve() else _reader(folder)
        if reader is not None:
            return folder.resolve().name, partial(reader, folder)
    if named is not None and place is not None:
        return named.name, partial(named.read, place, named.templates)
    if named is None:
        where = "" if root is None else f" and none in {root}"
        names = ", ".join(known.name for known in SETS)
        raise UserError(f"--data {text}: there is no such folder{where} with train and test in it; give one, or one of {names} with --data-root")
    if root is None:
        raise UserError(f"--data {text}: say with --data-root where {named.first} lies. To get it, in the folder that you name there: {named.steps}")
    missing = _missing(named, root / named.first) or [""]
    raise UserError(f"--data {text}: {root / named.first / missing[0]} is missing. To get it, in {root}: {named.steps}")


def _missing(spec: SetSpec, folder: Path) -> list[str]:
    """What is not there, in words."""
    places = {need: need.split("|") for need in spec.needs}
    return [" or ".join(found) for found in places.values() if not any((folder / place).exists() for place in found)]


def _reader(folder: Path) -> Callable[[Path], DataSet] | None:
    """How to read a folder that is no set with a name; None if it is no data set."""
    if not folder.is_dir():
        return None
    if webdataset.shards_of(folder, "test"):
        return webdataset.read_webdataset
    if (folder / "train").is_dir() or test_folder(folder) is not None:
        return read_image_folder
    if list_files(folder) is not None:
        return read_lists
    if index_files(folder) is not None:
        return read_elevater
    return read_parquet if shards_of(folder) else None
