"""The forms by name, and the one way in: ``write``."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finelens.core.options import nearest
from finelens.errors import UserError
from finelens.exchange.answers import Answers, answers_of
from finelens.exchange.camera_traps import write_camtrap_dp, write_coco_camera_traps
from finelens.exchange.datasets import How, write_fiftyone, write_folders, write_imagefolder
from finelens.exchange.detectors import write_megadetector, write_speciesnet
from finelens.exchange.labelling import write_cvat, write_label_studio
from finelens.exchange.sidecars import write_sidecars
from finelens.exchange.tables import write_pybioclip, write_wildlife_insights
from finelens.storage.files import TEMPORARY_PREFIX, TEMPORARY_SUFFIX, write_error


@dataclass(frozen=True)
class Form:
    """One form of another tool.

    Attributes:
        summary: What it is, for whom.
        write: Called with the answers, the path and the options that it takes; may return a line for the user.
        folder: Whether it is a folder.
        options: Options that it takes, of ``how``, ``package`` and ``project``.
        needed: Those of them that it cannot do without.
        boxes: Whether it has a place for boxes.
    """

    summary: str
    write: Callable[..., str | None]
    folder: bool = False
    options: frozenset[str] = frozenset()
    needed: frozenset[str] = frozenset()
    boxes: bool = False


_PLACED = frozenset({"how"})
_PACKAGE, _PROJECT = frozenset({"package"}), frozenset({"project"})
FORMS: dict[str, Form] = {
    "megadetector": Form("MegaDetector batch output 1.6, JSON: for Timelapse and AddaxAI", write_megadetector, boxes=True),
    "speciesnet": Form("SpeciesNet predictions, JSON", write_speciesnet),
    "pybioclip": Form("pybioclip predictions, CSV", write_pybioclip),
    "wildlife-insights": Form("Wildlife Insights images.csv", write_wildlife_insights, options=_PROJECT, needed=_PROJECT),
    "coco-ct": Form("COCO Camera Traps, JSON", write_coco_camera_traps, boxes=True),
    "camtrap-dp": Form("Camtrap DP 1.x folder: observations added to a given package", write_camtrap_dp, True, _PACKAGE, _PACKAGE),
    "label-studio": Form("Label Studio tasks with predictions, JSON", write_label_studio, boxes=True),
    "cvat": Form("CVAT for images 1.1, XML", write_cvat, boxes=True),
    "fiftyone": Form("FiftyOneImageClassificationDataset folder", write_fiftyone, True, _PLACED),
    "imagefolder": Form("Hugging Face imagefolder with metadata.csv", write_imagefolder, True, _PLACED),
    "folders": Form("a sub-folder of photographs for each class", write_folders, True, _PLACED),
    "xmp": Form("folder of XMP sidecars with the class as keyword", write_sidecars, True),
}
# Programs that people name in the place of the form that they open.
OPENED_BY = {"timelapse": "megadetector", "addaxai": "megadetector"}


def write(
    run: str | Path,
    to: str,
    out: str | Path,
    *,
    predictions: str | Path | None = None,
    photos: str | Path | None = None,
    at_least: float = 0.0,
    how: How | None = None,
    package: str | Path | None = None,
    project: str | None = None,
    in_file: str | Path | None = None,
    none_apart: bool = False,
) -> str:
    """Write the answers of a finished run in the form of another tool.

    Args:
        run: Folder of the run.
        to: Name of the form, see :data:`FORMS`.
        out: File or new folder to write.
        predictions: CSV file of ``finelens predict`` with this run; None for the run's own answers.
        photos: Folder of the photographs; None for the run's.
        at_least: The model's answers below this probability are written as no answer; a person's always stand.
        how: For folders of photographs: ``copy`` (default), ``hardlink`` or ``link``.
        package: For ``camtrap-dp``: folder of the package that the photographs are of.
        project: For ``wildlife-insights``: the project's id.
        none_apart: Whether the model's answers are written as no answer where a photograph probably belongs to none of the classes
            (``none_of_these`` above 0.5); ``folders`` puts such in ``_none_of_these``.
        in_file: With ``predictions``: the file of another tool that they were asked with, as for :func:`finelens.predict`.

    Returns:
        What was written, one line.

    Raises:
        UserError: Input that cannot be used, or a path that cannot be written.
    """
    form = FORMS.get(to)
    if form is None:
        near = OPENED_BY.get(to.lower()) or nearest(to, FORMS)
        raise UserError(f"unknown form {to}; " + (f"did you mean {near}?" if near else f"known are {', '.join(FORMS)}"))
    given = {"how": how, "package": None if package is None else Path(package), "project": project}
    options = _options_of(to, form, given)
    if not 0 <= at_least <= 1:
        raise UserError(f"--at-least is a probability from 0 to 1, got {at_least:g}")
    target = Path(out)
    _check(target, form.folder)
    asked, place, source = (None if path is None else Path(path) for path in (predictions, photos, in_file))
    answers = answers_of(Path(run), asked, place, at_least, source, none_apart)
    if answers.boxes and not form.boxes:
        able = ", ".join(name for name, other in FORMS.items() if other.boxes)
        raise UserError(f"the rows are boxes in photographs, and --to {to} has no place for them; forms with boxes: {able}")
    if form.folder:
        _refuse_inside(target, answers)
        said = _write_folder(target, lambda folder: form.write(answers, folder, **options))
    else:
        said = form.write(answers, target, **options)
    return said or _counts(answers)


def _options_of(to: str, form: Form, given: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in given.items():
        if value is not None and name not in form.options:
            able = ", ".join(other for other, own in FORMS.items() if name in own.options)
            raise UserError(f"--{name} has an effect with --to {able} only; leave it out")
        if value is None and name in form.needed:
            raise UserError(f"--to {to} needs --{name}; finelens write --help says what it is")
    if "how" in form.options:
        return {"how": given["how"] or "copy"}
    return {name: given[name] for name in form.options}


def _check(target: Path, folder: bool) -> None:
    """Refuse before the work: nothing that exists is written over, as it may hold another tool's work."""
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists; choose a new {'folder' if folder else 'file'}, so that nothing of another tool's is lost")
    if not target.absolute().parent.is_dir():
        raise UserError(f"{target.absolute().parent} does not exist; make that folder first")


def _refuse_inside(target: Path, answers: Answers) -> None:
    """Files inside the photographs would be read as photographs the next time."""
    if answers.photos is not None and answers.photos.resolve() in target.resolve().parents:
        raise UserError(f"{target} lies inside the photographs {answers.photos}; choose a folder beside them")


def _write_folder(target: Path, fill: Callable[[Path], str | None]) -> str | None:
    """Fill a folder under another name and move it to its place when it is whole."""
    half = target.absolute().parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        half.mkdir()
        said = fill(half)
        os.rename(half, target)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return said


def _counts(answers: Answers) -> str:
    read = list(answers.read)
    labelled = sum(answers.label(row) is not None for row in read)
    parts = [f"{labelled} of {len(answers.rows)} photographs with a class"]
    strange = sum(answers.of_none(row) for row in read if answers.label(row) is not None)
    if strange:
        belong = "belongs" if strange == 1 else "belong"
        parts[0] += f", {strange} of which probably {belong} to none of the classes (--none-apart takes them out)"
    if labelled < len(read):
        parts.append(f"{len(read) - labelled} without an answer")
    if len(read) < len(answers.rows):
        parts.append(f"{len(answers.rows) - len(read)} that could not be read")
    return ", ".join(parts)
