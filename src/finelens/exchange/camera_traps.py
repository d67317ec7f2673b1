"""Forms of camera-trap archives: COCO Camera Traps and Camtrap DP."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path
from typing import Any

from finelens.classes.file_names import FileNames
from finelens.classes.text_files import read_utf8
from finelens.errors import UserError
from finelens.exchange.answers import Answers
from finelens.exchange.kinds import kind_of
from finelens.exchange.tables import csv_text
from finelens.storage.files import read_json, write_json, write_text
from finelens.storage.predictions import PredictionRow

_EMPTY = 0
# Columns of observations.csv in Camtrap DP 1.0, in the order of its schema.
OBSERVATION_COLUMNS = (
    *("observationID", "deploymentID", "mediaID", "eventID", "eventStart", "eventEnd", "observationLevel", "observationType", "cameraSetupType"),
    *("scientificName", "count", "lifeStage", "sex", "behavior", "individualID", "individualPositionRadius", "individualPositionAngle"),
    *("individualSpeed", "bboxX", "bboxY", "bboxWidth", "bboxHeight", "classificationMethod", "classifiedBy", "classificationTimestamp"),
    *("classificationProbability", "observationTags", "observationComments"),
)
# Our observations are known by their ids, so that a second run takes the place of the first.
_OURS = "finelens:"


def write_coco_camera_traps(answers: Answers, out: Path) -> None:
    """COCO Camera Traps: images, categories with 0 for ``empty``, and a whole-image annotation for each answer, with its ``score``."""
    numbers = {name: _EMPTY if kind_of(name) == "blank" else number for number, name in enumerate(answers.classes, start=1)}
    categories = [{"id": _EMPTY, "name": "empty"}, *({"id": number, "name": name} for name, number in numbers.items() if number != _EMPTY)]
    images, annotations = [], []
    for file, rows in answers.photographs().items():
        image = _coco_image(answers, file, rows)
        images.append(image)
        annotations += [own for row in rows if (own := _coco_annotation(answers, row, image, numbers)) is not None]
    info = {"version": "1.0", "description": "Answers for each photograph as a whole", "contributor": answers.model, "year": answers.time.year}
    date = {"date_created": f"{answers.time:%Y-%m-%d %H:%M:%S}"}
    write_json(out, {"info": info | date, "images": images, "categories": categories, "annotations": annotations})


def _coco_annotation(answers: Answers, row: PredictionRow, image: dict[str, Any], numbers: dict[str, int]) -> dict[str, Any] | None:
    label = answers.label(row)
    if row.status != "ok" or label is None:
        return None
    box = answers.boxes.get(row.path)
    name = f"{row.path}#0" if box is None else row.path
    annotation = {"id": name, "image_id": image["id"], "category_id": numbers[label], "score": row.probability}
    if box is None or box.box is None:
        return annotation
    annotation["bbox_relative"] = box.box.values
    if "width" in image:
        sides = (image["width"], image["height"]) * 2
        annotation["bbox"] = [share * side for share, side in zip(box.box.values, sides, strict=True)]
    return annotation


def _coco_image(answers: Answers, file: str, rows: list[PredictionRow]) -> dict[str, Any]:
    image: dict[str, Any] = {"id": file, "file_name": file}
    read = next((row for row in rows if row.status == "ok"), None)
    if read is None:
        return image | {"corrupt": True}
    header = answers.header(read)
    if header is not None:
        image |= {"width": header.width, "height": header.height}
        if header.taken is not None:
            image["datetime"] = f"{header.taken:%Y-%m-%d %H:%M:%S}"
    return image


def write_camtrap_dp(answers: Answers, out: Path, package: Path) -> str:
    """A Camtrap DP 1.x with our observations beside those that it held.

    Deployments, media and the description are those of ``package``: places, times and the study's design are known to its owner only.

    Args:
        answers: What is to be written. Class names go to ``scientificName`` as they are.
        out: New folder.
        package: Folder of the Camtrap DP that the photographs are of; a photograph is found by ``filePath``, ``fileName`` or ``mediaID``.

    Returns:
        What was matched, one line.

    Raises:
        UserError: Not a Camtrap DP, or none of the photographs is in it.
    """
    description, media = _package(package)
    by_name = _media_by_name(media)
    names = FileNames(by_name, answers.photos)
    ours, missing = [], []
    for row in answers.read:
        found = names.find(row.path) or names.find(Path(row.path).name)
        if len(found) == 1:
            ours.append(_observation(answers, row, by_name[found[0]]))
        else:
            missing.append(row.path)
    if not ours:
        raise UserError(f"none of the photographs is in {package / 'media.csv'} (first: {missing[0]}); its filePath has to end in their paths")
    kept = [[own.get(column, "") for column in OBSERVATION_COLUMNS] for own in _kept_observations(package)]
    for name in ("deployments.csv", "media.csv"):
        shutil.copyfile(package / name, out / name)
    write_text(out / "observations.csv", csv_text(OBSERVATION_COLUMNS, [*kept, *ours]))
    write_json(out / "datapackage.json", description | {"created": f"{answers.time:%Y-%m-%dT%H:%M:%SZ}"})
    left = f"; {len(missing)} photographs are not in media.csv and were left out, first {missing[0]}" if missing else ""
    return f"{len(ours)} observations beside {len(kept)} that were there{left}"


def _package(package: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    for name in ("datapackage.json", "deployments.csv", "media.csv"):
        if not (package / name).is_file():
            raise UserError(f"{package} is no Camtrap DP: it has no {name}; give the folder that the photographs were exported with")
    description = read_json(package / "datapackage.json")
    names = {resource.get("name") for resource in description.get("resources", ())} if isinstance(description, dict) else set()
    if not {"deployments", "media", "observations"} <= names:
        raise UserError(f"{package / 'datapackage.json'} does not name the resources deployments, media and observations; give a Camtrap DP")
    return description, _rows(package / "media.csv")


def _media_by_name(media: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    """Media by every name that is one's alone: path, end of the path, file name, id."""
    names: dict[str, list[dict[str, str]]] = {}
    for own in media:
        parts = own.get("filePath", "").split("/")
        ends = {"/".join(parts[start:]) for start in range(len(parts))}
        for name in ends | {own.get("fileName", ""), own.get("mediaID", "")}:
            names.setdefault(name, []).append(own)
    return {name: found[0] for name, found in names.items() if name and len(found) == 1}


def _observation(answers: Answers, row: PredictionRow, medium: dict[str, str]) -> list[object]:
    label = answers.label(row)
    kind = "unclassified" if label is None else kind_of(label)
    known: dict[str, object] = {
        "observationID": f"{_OURS}{medium['mediaID']}",
        "deploymentID": medium.get("deploymentID"),
        "mediaID": medium["mediaID"],
        "eventID": medium.get("eventID"),
        "eventStart": medium.get("timestamp"),
        "eventEnd": medium.get("timestamp"),
        "observationLevel": "media",
        "observationType": kind,
        "scientificName": label if kind == "animal" else None,
    }
    if label is not None or row.answered:
        known["classificationMethod"] = "human" if row.answered else "machine"
        known["classifiedBy"] = "person who answered in finelens review" if row.answered else answers.model
        known["classificationTimestamp"] = f"{answers.time:%Y-%m-%dT%H:%M:%SZ}"
        known["classificationProbability"] = row.probability
    return [known.get(column) for column in OBSERVATION_COLUMNS]


def _kept_observations(package: Path) -> list[dict[str, str]]:
    path = package / "observations.csv"
    rows = _rows(path) if path.is_file() else []
    return [row for row in rows if not row.get("observationID", "").startswith(_OURS)]


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        read = csv.DictReader(io.StringIO(read_utf8(path, "table"), newline=""), strict=True)
        return [{name: cell or "" for name, cell in row.items() if name} for row in read]
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file ({error}); export the package again") from error
