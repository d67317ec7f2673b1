"""Support sets: images of the classes from outside the target set, made or found by the user, that some methods compare photographs with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from finelens.classes.hand_tables import read_table
from finelens.classes.labels import FOLDERS, read_labels
from finelens.classes.names import match, normalise
from finelens.classes.text_files import listing, quote, read_utf8
from finelens.core.console import Console
from finelens.core.options import nearest
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.images.batches import centre_batches
from finelens.images.decode import DecodeLimits
from finelens.images.discover import ImageFile, discover, display_name
from finelens.images.store import LoadedImages, load_images
from finelens.protocol import ImageStore, Support

METADATA = ("metadata.csv", "metadata.jsonl")
BATCH = 64


@dataclass(frozen=True)
class SupportRow:
    """What the user says about one image; an empty caption where there is none."""

    label: int
    caption: str = ""


@dataclass(frozen=True)
class SupportImages:
    """A support set, decoded.

    Attributes:
        store: The images.
        rows: Class and caption of each, by position in the store.
        digest: Hash of images, classes and captions.
    """

    store: ImageStore
    rows: tuple[SupportRow, ...]
    digest: str


def read_support(folder: Path, class_names: Sequence[str], limits: DecodeLimits, console: Console, *, captions: bool) -> SupportImages:
    """Read a support set.

    Args:
        folder: Images in sub-folders that are called like their classes; or anywhere below, with a ``metadata.csv`` or ``metadata.jsonl`` of the
            columns ``file`` (relative to the folder), ``label`` and, optionally, ``caption``.
        class_names: C names.
        limits: Decode limits of the run.
        console: Progress, and how many images could be read.
        captions: Whether every image needs a caption.

    Raises:
        UserError: The folder or its metadata cannot be used, captions are missing, or no image can be read.
    """
    where = f"support set {quote(str(folder))}"
    if not folder.is_dir():
        raise UserError(f"{where} is not a folder; give a folder of images in class sub-folders, or with a metadata.csv of file,label,caption")
    files = {file.name: file for file in discover(folder)}
    rows = _rows(folder, files, class_names, where)
    bare = [name for name, row in rows.items() if not row.caption]
    if captions and bare:
        raise UserError(f"{where}: {len(bare)} of {len(rows)} images have no caption (first: {quote(bare[0])}); add a caption column to metadata.csv")
    wanted = [files[name] for name in rows]
    with console.progress(len(wanted), "read support set") as bar:

        def advance(done: int) -> None:
            bar.update(1)

        loaded = load_images(wanted, limits, progress=advance)
    return _kept(loaded, rows, class_names, where, console)


def _kept(loaded: LoadedImages, rows: Mapping[str, SupportRow], class_names: Sequence[str], where: str, console: Console) -> SupportImages:
    by_position = {record.index: rows[record.name] for record in loaded.records if record.index is not None}
    if not by_position:
        reasons = "; ".join(f"{record.name}: {record.status}, {record.reason}" for record in loaded.records[:3])
        raise UserError(f"{where}: none of its {len(rows)} images can be read ({reasons})")
    kept = tuple(by_position[i] for i in range(len(by_position)))
    bad = len(rows) - len(kept)
    covered = len({row.label for row in kept})
    console.say(f"support set: {len(kept)} images for {covered} of {len(class_names)} classes" + (f", {bad} could not be read" if bad else ""))
    content = json.dumps([list(loaded.store.ids), [[row.label, row.caption] for row in kept]])
    return SupportImages(loaded.store, kept, hashlib.sha256(content.encode()).hexdigest())


def _rows(folder: Path, files: Mapping[str, ImageFile], class_names: Sequence[str], where: str) -> dict[str, SupportRow]:
    given = [name for name in METADATA if name in files]
    if len(given) > 1:
        raise UserError(f"{where} holds both {' and '.join(given)}; keep one of them")
    if given:
        return _from_metadata(folder / given[0], files, class_names)
    labels = read_labels(folder, FOLDERS, class_names)
    return {name: SupportRow(label) for name, label in labels.items() if name in files}


def _from_metadata(path: Path, files: Mapping[str, ImageFile], class_names: Sequence[str]) -> dict[str, SupportRow]:
    what = f"support metadata {quote(str(path))}"
    table = list(_csv_rows(path, what) if path.suffix == ".csv" else _json_rows(path, what))
    known = match({row.get("label", "") for _, row in table}, class_names)
    position = {name: i for i, name in enumerate(class_names)}
    result: dict[str, SupportRow] = {}
    for line, row in table:
        missing = [column for column in ("file", "label") if not row.get(column)]
        if missing:
            raise UserError(f"{what}, line {line}: no {missing[0]}; each line needs file and label")
        name = display_name(PurePosixPath(row["file"]))
        if name not in files:
            raise UserError(f"{what}, line {line}: there is no file {quote(row['file'])}; give paths relative to its folder")
        if name in result:
            raise UserError(f"{what}, line {line}: {quote(name)} is listed twice; keep one of the lines")
        if row["label"] not in known:
            near = nearest(row["label"], class_names, normalise)
            remedy = f"did you mean {quote(near)}?" if near else f"classes are: {listing([quote(c) for c in class_names])}"
            raise UserError(f"{what}, line {line}: unknown class {quote(row['label'])}; {remedy}")
        result[name] = SupportRow(position[known[row["label"]]], " ".join(row.get("caption", "").split()))
    if not result:
        raise UserError(f"{what} has no rows; add one line for each image")
    return result


def _csv_rows(path: Path, what: str) -> Iterable[tuple[int, dict[str, str]]]:
    header, rows = read_table(path, what.split(" '")[0], ("file", "label", "caption"))
    for line, cells in rows:
        yield line, dict(zip(header, map(str.strip, cells), strict=False))


def _json_rows(path: Path, what: str) -> Iterable[tuple[int, dict[str, str]]]:
    for line, text in enumerate(read_utf8(path, what.split(" '")[0]).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row: Any = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()):
            raise UserError(f'{what}, line {line}: expected an object of texts such as {{"file": "1.jpg", "label": "cat"}}')
        yield line, row


@torch.no_grad()
def encode_support(engine: Engine, images: SupportImages) -> Support:
    """Features of the support set as the backbone of the run gives them, its centre fitted; captions by its text tower where all images have one."""
    preprocess = engine.backbone.preprocess
    with engine.stopwatch("support set"):
        parts = [engine.encode_frozen(views).global_ for _, views in centre_batches(images.store, preprocess, BATCH)]
        captions: Tensor | None = None
        if all(row.caption for row in images.rows):
            captions = engine.backbone.encode_text([row.caption for row in images.rows])
    return Support(torch.cat(parts), torch.tensor([row.label for row in images.rows]), captions)
