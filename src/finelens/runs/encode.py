"""``finelens features``: one pass over photographs, and a file that stands for them."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from finelens.classes.heads import ClassHeads
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.feature_store.crops import Crops
from finelens.feature_store.encoder import FeatureEncoder
from finelens.feature_store.files import FORMAT
from finelens.feature_store.folder import TEXTS, FeatureFolder
from finelens.feature_store.paths import FOLDER_SUFFIX, MANIFEST, PART
from finelens.images.load import decode_limits, load, say_notes, status_counts
from finelens.images.store import LoadedImages
from finelens.protocol import ImageRecord
from finelens.runs.config import RunConfig
from finelens.runs.encode_folder import encode_folder, metadata_of, open_engine, photographs_at, text_tensors
from finelens.runs.place import refuse_among
from finelens.storage.cache import spill_folder
from finelens.storage.files import atomic_writer, json_text
from finelens.storage.tensors import TensorFile, load_metadata


def features(
    photos: str | Path,
    out: str | Path,
    *,
    backbone: str = "embedded",
    device: str = "cpu",
    classes: str | Path | None = None,
    descriptions: str | Path | None = None,
    patches: bool = False,
    crops: int = 0,
    seed: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> list[ImageRecord]:
    """Encode photographs and write a feature file. What was encoded before, or before an interruption, comes from the cache.

    Args:
        photos: Folder of photographs, tar shards, Parquet files with image bytes, an index file over zip archives, or a list of paths.
        out: File to write, ``.safetensors``; or a folder of shards, ``.features``, which is written as it goes, in memory that does not grow with
            the photographs, and to which the same call goes on after an end at any moment.
        backbone: ``embedded``, ``open_clip:NAME/TAG``, ``hf-hub:ORG/REPO``, ``local:DIR`` or ``transformers:DIR_OR_ORG/REPO``.
        device: ``cpu``, ``cuda`` or ``mps``.
        classes: File of class names, to store their prototypes as well.
        descriptions: JSON file {class: [sentence, ...]} for the prototypes.
        patches: Whether to store patch tokens.
        crops: Random crops of each image to encode and store.
        seed: Seed of the crops.
        overwrite: Whether an earlier feature file at ``out`` is replaced.
        console: What is said on the way.

    Returns:
        One record per file of the folder, readable or not; none for a folder of shards, which may be about millions.

    Raises:
        UserError: Input that cannot be used, or a file that must not be replaced.
    """
    console = console or Console()
    out = Path(out)
    check_out(out, Path(photos), overwrite)
    if descriptions is not None and classes is None:
        raise UserError("--descriptions is about classes: give --classes FILE as well")
    if out.suffix.lower() == FOLDER_SUFFIX:
        if patches or crops:
            raise UserError("--patches and --crops are written to one file: give --out FILE.safetensors")
        encode_folder(out, photos, backbone, device, classes, descriptions, console)
        return []
    inputs = photographs_at(photos).inputs
    config = RunConfig("zero-shot", str(photos), method="zero-shot", backbone=backbone, device=device, seed=seed)
    engine, heads, names = open_engine(config, classes, descriptions, console)
    encoder = FeatureEncoder(engine, (limits := decode_limits(config.views, engine.backbone.preprocess)).short_side)
    loaded = load(inputs, limits, console, spill_folder())
    if crops:
        encoder.say_size(len(loaded.store), crops, console)
    metadata = metadata_of(engine, backbone)
    if heads is not None:
        metadata["classes"] = json.dumps(names)
    if crops:
        metadata["crops"] = json.dumps(asdict(Crops(crops, seed)))
    _write(out, encoder, loaded, heads, metadata, patches, Crops(crops, seed) if crops else None, console)
    counts = status_counts(loaded.records)
    console.say(f"{len(loaded.records)} files: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    say_notes(loaded.records, console)
    console.say(f"{engine.no_grad_forwards} views encoded now, the others came from the cache; wrote {out}")
    return loaded.records


def _check_folder(out: Path, overwrite: bool) -> None:
    """Refuse a folder with something else in it, or one that is whole already."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; give the name of a folder, or of a file that ends in .safetensors")
    if (out / MANIFEST).is_file():
        if not overwrite:
            raise UserError(f"{out} exists; give another name, or --overwrite to replace it")
        FeatureFolder(out)
    elif any(not (entry.name.startswith(".finelens") or entry.name in (PART, TEXTS) or entry.name.startswith("shard-")) for entry in out.iterdir()):
        raise UserError(f"{out} was not written by finelens features; choose another name")


def check_out(out: Path, photos: Path, overwrite: bool) -> None:
    """Refuse a place for features.

    Raises:
        UserError: It has another form than a place of features, lies inside the photographs, or must not be replaced.
    """
    folder = out.suffix.lower() == FOLDER_SUFFIX
    if not folder and out.suffix.lower() != ".safetensors":
        raise UserError(f"{out}: features are written as .safetensors, or to a folder NAME{FOLDER_SUFFIX}; give such a name")
    if out.is_dir() and not folder:
        raise UserError(f"{out} is a folder; give the name of a file")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out.absolute().parent} does not exist; make that folder first")
    refuse_among(out, photos)
    if folder:
        _check_folder(out, overwrite)
        return
    if not out.exists():
        return
    if not overwrite:
        raise UserError(f"{out} exists; give another name, or --overwrite to replace it")
    if load_metadata(out).get("format") != FORMAT:
        raise UserError(f"{out} was not written by finelens features; choose another name")


def _write(
    out: Path,
    encoder: FeatureEncoder,
    loaded: LoadedImages,
    heads: ClassHeads | None,
    metadata: dict[str, str],
    patches: bool,
    crops: Crops | None,
    console: Console,
) -> None:
    backbone, count = encoder.engine.backbone, len(loaded.store)
    records = json_text([[r.name, r.status, r.reason, r.sample_id] for r in loaded.records]).encode("utf-8", "backslashreplace")
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {"global": ("F32", (count, backbone.dim)), "cls": ("F32", (count, backbone.width))}
    if patches:
        rows, columns = backbone.grid
        shapes["patches"] = ("F32", (count, rows * columns, backbone.width))
    if crops is not None:
        shapes["crops.global"] = ("F32", (count, crops.count, backbone.dim))
        shapes["crops.cls"] = ("F32", (count, crops.count, backbone.width))
    texts = {} if heads is None else text_tensors(heads)
    shapes |= {name: ("I64" if tensor.dtype is torch.int64 else "F32", tuple(tensor.shape)) for name, tensor in texts.items()}
    shapes["records"] = ("U8", (len(records),))
    # Rows follow the table of files, so that the k-th readable file is row k.
    row = {cast(int, record.index): k for k, record in enumerate(record for record in loaded.records if record.index is not None)}
    with atomic_writer(out) as stream:
        file = TensorFile(stream, shapes, metadata)
        file.put("records", 0, torch.frombuffer(bytearray(records), dtype=torch.uint8))
        for name, tensor in texts.items():
            file.put(name, 0, tensor)
        with (
            console.progress(count, "encode images") as bar,
            closing(encoder.stream(loaded.store, console, patches=patches)) as found,
        ):
            for positions, values in found:
                _put(file, row, positions, values)
                bar.update(len(positions))
        if crops is not None:
            with console.progress(count, "encode crops") as bar, closing(encoder.stream_crops(loaded.store, crops, console)) as found:
                for positions, values in found:
                    _put(file, row, positions, {f"crops.{name}": value for name, value in values.items()})
                    bar.update(len(positions))


def _put(file: TensorFile, row: dict[int, int], positions: list[int], values: dict[str, Tensor]) -> None:
    for name, tensor in values.items():
        for i, position in enumerate(positions):
            file.put(name, row[position], tensor[i : i + 1].float())
