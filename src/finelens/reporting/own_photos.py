"""Photographs of a run as it saw them: what has changed since, or is another of the same name, is not shown beside its answers."""

from __future__ import annotations

from pathlib import Path

from finelens.backbones.features_only import KIND
from finelens.classes.text_files import counted
from finelens.core.console import Console
from finelens.evaluation.signals import content_of
from finelens.reporting.record import RunRecord
from finelens.reporting.thumbnails import Photo, Photos, no_photos


class OwnPhotos:
    """Photographs by name, as :data:`~finelens.reporting.thumbnails.Photos`, if their content is that of the run.

    Rows that finelens did not encode have no content to compare, nor have runs of before.

    Args:
        photos: Where they come from.
        record: The run.
    """

    def __init__(self, photos: Photos, record: RunRecord) -> None:
        self._photos = photos
        ids = () if record.config.backbone == KIND else record.measured.ids
        self._contents = {row.path: content for row, content in zip(record.predicted, ids, strict=False)}
        self._shown: set[str] = set()
        self._gone: set[str] = set()
        self._others: set[str] = set()

    def __call__(self, name: str) -> Photo | None:
        """The photograph; None where it is gone, or another."""
        photo = self._photos(name)
        if photo is None:
            self._gone.add(name)
            return None
        content = content_of(photo.sample_id)
        if self._contents.get(name, content) != content:
            self._others.add(name)
            return None
        self._shown.add(name)
        return photo

    def say(self, place: str, console: Console) -> None:
        """Warn of a page without photographs, and of those that are others.

        Args:
            place: Where they were looked for.
            console: What to say.
        """
        if self._others:
            photographs = counted(len(self._others), "photograph is", "photographs are")
            console.warn(
                f"{photographs} not what the run saw (first: {min(self._others)} in {place}): changed since, or others of the same names; "
                "the page does not show them. Say where the run's are with --photos"
            )
        elif self._gone and not self._shown and self._photos is not no_photos and Path(place).exists():
            console.warn(f"none of the run's photographs is in {place}, so the page shows none; say where they are with --photos")
