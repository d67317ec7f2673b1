"""Photographs of a run as it saw them: what has changed since, or is another of the same name, is not shown beside its answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from finelens.backbones.features_only import KIND
from finelens.classes.text_files import counted
from finelens.core.console import Console
from finelens.evaluation.signals import content_of
from finelens.reporting.record import RunRecord
from finelens.reporting.thumbnails import Photo, Photos, no_photos


def contents_of(record: RunRecord) -> dict[str, str]:
    """What the run saw under each name, as ``evaluation.signals.content_of`` says it; without rows that finelens did not encode."""
    ids = () if record.config.backbone == KIND else record.measured.ids
    return {row.path: content for row, content in zip(record.predicted, ids, strict=False)}


def others(record: RunRecord, seen: Mapping[str, str]) -> set[str]:
    """Names under which there is now another content than the run saw.

    Args:
        record: The run.
        seen: Sample ids by name, as they are now.
    """
    known = contents_of(record)
    return {name for name, sample_id in seen.items() if known.get(name, content_of(sample_id)) != content_of(sample_id)}


def warn_of_others(names: Collection[str], place: str, consequence: str, console: Console) -> None:
    """Warn of photographs that are not what the run saw, if there are such; ``consequence`` says what becomes of them."""
    if names:
        photographs = counted(len(names), "photograph is", "photographs are")
        console.warn(
            f"{photographs} not what the run saw (first: {min(names)} in {place}): changed since, or others of the same names; "
            f"{consequence}. Say where the run's are with --photos"
        )


class OwnPhotos:
    """Photographs by name, as :data:`~finelens.reporting.thumbnails.Photos`, if their content is that of the run.

    Rows that finelens did not encode have no content to compare, nor have runs of before.

    Args:
        photos: Where they come from.
        record: The run.
    """

    def __init__(self, photos: Photos, record: RunRecord) -> None:
        self._photos = photos
        self._contents = contents_of(record)
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
        warn_of_others(self._others, place, "the page does not show them", console)
        if self._others:
            return
        if self._gone and not self._shown and self._photos is not no_photos and Path(place).exists():
            console.warn(f"none of the run's photographs is in {place}, so the page shows none; say where they are with --photos")
