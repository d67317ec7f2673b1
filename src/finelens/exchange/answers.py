"""The answers of a finished run as every form needs them: rows, class names, where the photographs lie, who said it and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from finelens.classes.file_names import leaves
from finelens.classes.text_files import quote
from finelens.core.schemas import MODEL_CONFIG_FILE, VERSION
from finelens.errors import UserError
from finelens.evaluation.none_of_these import probably_none
from finelens.images.discover import discover, shards_at
from finelens.images.header import Header, header
from finelens.intake.taken import Row, Taken, saved, take
from finelens.runs.folder import RunFolder
from finelens.storage.files import read_json
from finelens.storage.predictions import PredictionRow, read_predictions


@dataclass(frozen=True)
class Answers:
    """What a run, or a person, says of each file.

    Attributes:
        rows: One for every file, in the order of ``predictions.csv``.
        classes: C names in the order of the run.
        photos: Folder of the photographs; None where it is not known, or not there.
        model: Who answered, for a person to read.
        time: When, in UTC.
        at_least: An answer of the model below this probability is written as no answer.
        none_apart: Whether an answer of the model is written as no answer too where the photograph probably belongs to none of the classes.
        taken: The file of another tool that the rows come from; None where each row is a file.
        source: That file, as far as it is known.
        adapted_to: What the run was adapted to, where the answers are about that.
    """

    rows: Sequence[PredictionRow]
    classes: Sequence[str]
    photos: Path | None
    model: str
    time: datetime
    at_least: float = 0.0
    taken: Taken | None = None
    source: Path | None = None
    adapted_to: Path | None = None
    none_apart: bool = False

    @property
    def read(self) -> Iterator[PredictionRow]:
        """Rows of the files that could be read."""
        return (row for row in self.rows if row.status == "ok")

    def label(self, row: PredictionRow) -> str | None:
        """The class of a row; None where there is none: not read, "none of these classes", or less sure than asked for."""
        sure = row.probability is not None and row.probability >= self.at_least
        return row.label if sure and not (self.none_apart and self.of_none(row)) else None

    def of_none(self, row: PredictionRow) -> bool:
        """Whether a photograph belongs to none of the classes: a person says so, or in the place of one it is probable."""
        if row.answered:
            return row.label is None
        return row.none_of_these is not None and bool(probably_none(row.none_of_these))

    @cached_property
    def files(self) -> dict[str, Path]:
        """Where the photographs lie, by path of the row.

        Raises:
            UserError: The folder is not known, or not there any more.
        """
        if self.photos is None:
            if self.adapted_to is not None:
                raise UserError(f"{self.adapted_to} is no folder of photographs, or not any more; give their folder with --photos")
            raise UserError("where the photographs of these answers lie is not known; give their folder with --photos")
        if self.taken is None and shards_at(self.photos):
            raise UserError(f"{self.photos} holds shards, and this form needs the photographs as files: unpack them, or write a form without files")
        return {file.name: file.path for file in (discover(self.photos) if self.taken is None else self.taken.images(self.photos))}

    @cached_property
    def boxes(self) -> dict[str, Row]:
        """The rows that are boxes, by path of the row."""
        return {} if self.taken is None else {row.name: row for row in self.taken.rows if row.box is not None}

    def file(self, row: PredictionRow) -> str:
        """The photograph that a row is about, or about a box of."""
        return self.boxes[row.path].file if row.path in self.boxes else row.path

    def header(self, row: PredictionRow) -> Header | None:
        """Size and time of a row's photograph; None where it is gone or its header cannot be read."""
        return header(self.files[row.path]) if row.path in self.files else None

    def photographs(self) -> dict[str, list[PredictionRow]]:
        """Rows by photograph, in their order; of one without boxes its only row."""
        groups: dict[str, list[PredictionRow]] = {}
        for row in self.rows:
            groups.setdefault(self.file(row), []).append(row)
        return groups


def below(folder: Path, path: str) -> Path:
    """Where a file for a row goes in a folder that is written; rows of a list may be called by any path.

    Args:
        folder: What is written.
        path: Of the row.

    Raises:
        UserError: The path leads out of the folder.
    """
    if leaves(path):
        raise UserError(f"{quote(path)} leads out of the folder that is written; ask finelens predict about the photographs' folder, not a list")
    return folder / path


def answers_of(
    run: Path,
    predictions: Path | None = None,
    photos: Path | None = None,
    at_least: float = 0.0,
    in_file: Path | None = None,
    none_apart: bool = False,
) -> Answers:
    """Read the answers of a run.

    Args:
        run: Folder of a finished run.
        predictions: CSV file of ``finelens predict`` with that run; None for the run's own answers.
        photos: Folder of the photographs; None for the run's. Needed beside ``predictions`` by the forms that look into files.
        at_least: See :class:`Answers`.
        in_file: File of another tool that ``predictions`` were asked with; the run's own answers know theirs.
        none_apart: See :class:`Answers`.

    Raises:
        UserError: Not a finished run, or a file that cannot be read.
    """
    with RunFolder.open(run, lock=False) as folder:
        described = folder.model_dir / MODEL_CONFIG_FILE
        if not described.is_file():
            raise UserError(f"{run} is not finished: finelens resume {run} goes on with it")
        document: dict[str, Any] = read_json(described)
        own, adapted_to = predictions is None, Path(folder.config.photos)
        rows = read_predictions(folder.predictions_path if predictions is None else predictions)
        classes = tuple(document["class_names"])
        known = {*classes, None}
        foreign = next((name for row in rows for name in (row.label, *(own for own, _ in row.top5)) if name not in known), None)
        if foreign is not None:
            raise UserError(
                f"{predictions or folder.predictions_path} has the class {quote(foreign)}, which {run} has not; give the run that answered"
            )
        told = [row for row in rows if row.label is not None and not row.answered]
        if none_apart and told and all(row.none_of_these is None for row in told):
            raise UserError(
                f"{predictions or folder.predictions_path} does not say of which photographs none of the classes is probable "
                "(an older finelens wrote it); leave --none-apart out, or make the run again"
            )
        if own:
            taken, source = saved(folder.taken_path), None if folder.config.in_file is None else Path(folder.config.in_file)
        else:
            taken, source = _taken(in_file, photos, rows), in_file
        times = [event["time"] for event in folder.events() if event["event"] == "end"]
        return Answers(
            rows,
            classes,
            photos or (adapted_to if own and adapted_to.is_dir() else None),
            f"finelens {document.get('finelens_version', VERSION)}, {document['method']} on {folder.config.backbone}",
            datetime.fromisoformat(times[-1]) if times else datetime.fromtimestamp(described.stat().st_mtime, UTC),
            at_least,
            taken,
            source if in_file is None else in_file,
            adapted_to if own else None,
            none_apart,
        )


def _taken(in_file: Path | None, photos: Path | None, rows: Sequence[PredictionRow]) -> Taken | None:
    """Rows of the file that predictions were asked with: every box that has an answer.

    Raises:
        UserError: It is another file, its photographs are not known, or the rows are tiles.
    """
    if in_file is None:
        names = {row.path for row in rows}
        tile = next((name for name in names if "#" in name and name.rpartition("#")[0] in names), None)
        if tile is not None:
            raise UserError(f"{tile} is a tile of predict --tiles, which other tools have no place for; give the file of a predict without --tiles")
        return None
    if photos is None:
        raise UserError(f"where the photographs of {in_file} lie is not known; give their folder with --photos")
    found = take(in_file, photos, 0.0)
    unknown = {row.path for row in rows} - {row.name for row in found.rows}
    if unknown:
        raise UserError(f"{in_file} does not name {min(unknown)}, which has an answer; give the file that finelens predict --in was given")
    asked = {row.path for row in rows}
    return replace(found, rows=tuple(row for row in found.rows if row.name in asked))
