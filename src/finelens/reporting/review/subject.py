"""What a live review is about: photographs, the names that there are, and a learner that was made from them once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from finelens.classes.hints import How
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.evaluation.prequential import random_order
from finelens.evaluation.signals import ID_LENGTH
from finelens.reporting.record import RunRecord
from finelens.reporting.review.answers import earlier_answers, earlier_told
from finelens.reporting.review.sheet import SIDE, adapt_command, photographs
from finelens.reporting.review.start import adapt_command as first_adapt_command
from finelens.reporting.review.start import readable, unnamed_features
from finelens.reporting.review.worth import unadapted_features
from finelens.reporting.thumbnails import Photos, from_folder
from finelens.runs.folder import RunFolder
from finelens.solvers.learner import Learner


@dataclass(frozen=True)
class Subject:
    """Photographs to be named.

    Attributes:
        name: What the page is called.
        classes: Class names; empty where the person makes them up.
        paths: Photographs, one for each row of the learner.
        ids: Content of each; copies have the same.
        learner: Made without answers.
        photos: Where the pictures come from.
        command: What to do with the answers.
        given: Answers that the run was made with: class names by path.
        new_names: Whether an answer may be a name that is not in the list.
        told: How the answers in ``given`` were given, as far as that is known.
    """

    name: str
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    ids: tuple[str, ...]
    learner: Learner
    photos: Photos
    command: str
    given: dict[str, str]
    new_names: bool
    told: Mapping[str, How] = field(default_factory=dict)

    @cached_property
    def place(self) -> dict[str, int]:
        """Row of each photograph."""
        return {path: i for i, path in enumerate(self.paths)}

    @cached_property
    def drawn(self) -> list[int]:
        """Rows in the order in which questions are drawn at random."""
        return random_order(self.ids)

    def with_copies(self, rows: Iterable[int]) -> set[int]:
        """The rows, and all that hold the same photograph."""
        same = {self.ids[row] for row in rows}
        return {row for row, identity in enumerate(self.ids) if identity in same}

    @property
    def looks(self) -> Tensor:
        """Centred unit features, (N, D)."""
        return self.learner.looks


def subject_of_run(folder: RunFolder, record: RunRecord, hints: Path, console: Console, *, device: str = "cpu") -> Subject:
    """The photographs of a finished run, with the default method as the learner on all features that the run looked at.

    They come from the cache where they can.

    Args:
        folder: The run.
        record: What its files say.
        hints: File that the answers go to.
        console: Progress.
        device: Where photographs are encoded that the cache does not hold.

    Raises:
        UserError: The run is not finished, or its images are gone.
    """
    classifier, features, places = unadapted_features(folder, record, console, device)
    # In the order of the run, whose second round divides the answers into the same parts then.
    rows = sorted((row for row in record.read if row.path in places), key=lambda row: places[row.path])
    if not rows:
        raise UserError(f"none of the run's images is in {record.config.photos} any more; say where they are with --photos")
    model = classifier.model
    with model.unadapted():
        order = [places[row.path] for row in rows]
        views = [view.float().cpu()[order] for view in (features.global_, features.cls, *features.extra)]
        learner = Learner(views, model.zero_shot_heads["descriptions"].float().cpu(), model.engine.backbone.logit_scale)
    known = dict(zip((row.path for row in record.predicted), record.measured.ids, strict=True))
    return Subject(
        name=record.path.absolute().name,
        classes=record.classes,
        paths=tuple(row.path for row in rows),
        ids=tuple(known.get(row.path, row.path) for row in rows),
        learner=learner,
        photos=photographs(record),
        command=adapt_command(record, str(hints)),
        given=earlier_answers(record),
        told=earlier_told(record),
        # A class needs a prototype, and these come from a file.
        new_names=record.config.prototypes_file is None,
    )


def subject_of_photos(photos: Path, hints: Path, console: Console, *, backbone: str = "embedded", device: str = "cpu") -> Subject:
    """A folder of photographs, or a feature file, without a class list: the person makes the names up.

    Args:
        photos: The folder or file.
        hints: File that the answers go to.
        console: Progress.
        backbone: Encodes photographs, as for ``adapt``.
        device: Where photographs are encoded that the cache does not hold.

    Raises:
        UserError: No image can be read.
    """
    limits, loaded, features = unnamed_features(photos, console, backbone, device)
    records = readable(loaded)
    return Subject(
        name=photos.absolute().name,
        classes=(),
        paths=tuple(record.name for record in records),
        ids=tuple(content.partition("-")[0][:ID_LENGTH] for content in loaded.store.ids),
        learner=Learner([view.float().cpu() for view in (features.global_, features.cls)], None),
        photos=from_folder(photos, replace(limits, short_side=SIDE)),
        command=first_adapt_command(str(photos.absolute()), str(hints), backbone),
        given={},
        new_names=True,
    )
