"""A finished run asked about other photographs: ``predict``, ``predict_to``, ``join``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finelens.core.console import Console
from finelens.runs.arguments import PredictArguments, as_path
from finelens.runs.early import check_predict
from finelens.runs.shard import Shard, join_parts
from finelens.runs.to_file import predict_to_file
from finelens.storage.predictions import PredictionRow, read_predictions


def predict(run: str | Path, photos: str | Path, csv: str | Path, **given: Any) -> list[PredictionRow]:
    """As :func:`predict_to`, with all rows in memory in the end."""
    return read_predictions(predict_to(run, photos, csv, **given))


def predict_to(
    run: str | Path,
    photos: str | Path,
    csv: str | Path,
    *,
    device: str = "cpu",
    strict: bool = False,
    row_names: str | Path | None = None,
    in_file: str | Path | None = None,
    box_confidence: float | None = None,
    csv_bom: bool = False,
    extra: Sequence[str | Path] = (),
    extra_names: Sequence[str | Path] = (),
    extra_encoders: Sequence[str] = (),
    calibrate: str | Path | None = None,
    calibrate_photos: str | Path | None = None,
    coverage: float | None = None,
    zero_shot: bool = True,
    shard: str | None = None,
    classes: str | Path | None = None,
    descriptions: str | Path | None = None,
    prototypes: str | Path | None = None,
    group_by: str | None = None,
    tiles: str | None = None,
    tile_floor: float | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Classify new photographs, or the rows of a feature file, and write a CSV file with the columns of ``predictions.csv``.

    Rows are written as they come, to ``CSV.part`` until all are there. After an interruption the same call goes on where it was, and ends with the
    same bytes.

    Args:
        run: The run folder.
        photos: Folder of photographs, tar shards, Parquet files with image bytes, a feature file, one photograph, a list of paths (``.txt``,
            ``.lst``), or ``-`` for a list on standard input.
        csv: File to write.
        device: Where to run it.
        strict: As in :func:`adapt`.
        row_names: As in :func:`adapt`.
        in_file: As in :func:`adapt`: what it names of ``photos`` is classified, its boxes as crops.
        box_confidence: As in :func:`adapt`.
        csv_bom: Whether the files begin with a byte-order mark, for Excel.
        extra: Feature files of the further encoders that the run was made with, in that order, about these images; see docs/features.md.
        extra_names: Text files of row names for those of another origin: one for all, or one each.
        extra_encoders: Where the weights of encoders that were given by name are now, if they have moved; in their order.
        calibrate: CSV file with the columns ``path``, relative to ``calibrate_photos``, and ``label`` of some photographs; writes conformal sets too,
            see docs/calibration.md.
        calibrate_photos: Folder of those photographs; by default ``photos``.
        coverage: Share of the sets that should hold the true class; by default 0.9.
        zero_shot: Whether the unadapted model is asked as well; without it the column ``zero_shot_class`` is empty, and a trained method takes half
            the time.
        shard: ``I/K`` writes part I of K only, into ``CSV-0000I-of-0000K.csv``; see :func:`join`.
        classes: File of another list of class names than the run's; what becomes of new ones is on the page docs/new_classes.md.
        descriptions: JSON file of sentences about them; by default the run's.
        prototypes: Their prototypes, where the run was made with prototypes.
        group_by: As in :func:`adapt`; writes ``CSV`` with ``_groups`` in its name. Answers of all stay in memory then, and a call that was stopped
            begins anew.
        tiles: Grid of tiles into which each photograph is cut, ``3``, ``3x2`` or ``3x2:0.5`` (docs/tiles.md): a row a tile, and ``CSV`` with
            ``_tiles`` in its name, the classes that each photograph shows.
        tile_floor: Least probability with which a tile names its class; by default 0.5.
        overwrite: Whether files of an earlier call are replaced; what a stopped one left is gone on with in any case.
        console: Progress.

    Returns:
        The file that was written.

    Raises:
        UserError: Input that cannot be used.
    """
    question = PredictArguments(
        run=Path(run),
        photos=Path(photos),
        csv=Path(csv),
        device=device,
        strict=strict,
        row_names=as_path(row_names),
        extra=tuple(map(Path, extra)),
        extra_names=tuple(map(Path, extra_names)),
        calibrate=as_path(calibrate),
        calibrate_photos=as_path(calibrate_photos),
        coverage=coverage,
        zero_shot=zero_shot,
        shard=None if shard is None else Shard.parse(shard),
        in_file=as_path(in_file),
        box_confidence=box_confidence,
        csv_bom=csv_bom,
        extra_encoders=tuple(extra_encoders),
        classes=as_path(classes),
        descriptions=as_path(descriptions),
        prototypes=as_path(prototypes),
        group_by=group_by,
        tiles=tiles,
        tile_floor=tile_floor,
        overwrite=overwrite,
    )
    check_predict(question)
    return predict_to_file(question, console or Console())


def join(parts: Sequence[str | Path], csv: str | Path, *, console: Console | None = None) -> Path:
    """Put the parts that ``predict(..., shard="I/K")`` wrote together: the file has the bytes of one that was written without parts.

    Args:
        parts: All of them, in any order.
        csv: File to write; ``.sets.csv`` beside the parts is joined beside it.
        console: What is said.

    Raises:
        UserError: A part is missing, or a file is none.
    """
    return join_parts([Path(part) for part in parts], Path(csv), console or Console())
