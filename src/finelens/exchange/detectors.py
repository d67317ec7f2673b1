"""Forms of animal detectors and their classifiers: MegaDetector's batch results (Timelapse, AddaxAI) and SpeciesNet's predictions."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from finelens.errors import UserError
from finelens.exchange.answers import Answers
from finelens.exchange.kinds import kind_of
from finelens.intake.contents import text
from finelens.intake.detectors import MEGADETECTOR
from finelens.intake.taken import shown
from finelens.storage.files import read_json, write_json
from finelens.storage.predictions import PredictionRow

# The classifier looked at the whole photograph: one box around all of it, in shares of width and height.
WHOLE = (0, 0, 1, 1)
_DETECTIONS = {"animal": "1", "human": "2", "vehicle": "3"}


def write_megadetector(answers: Answers, out: Path) -> None:
    """MegaDetector batch output, format 1.6: each photograph one box around all of it, with its likeliest classes.

    A class named like a person or a vehicle makes the box one of those; one named like an empty photograph makes no box. What was not read is a
    ``failure``. Answers about boxes of such a file go back into a copy of it: its boxes, numbers and failures stay as they are.
    """
    if answers.taken is not None and answers.taken.form == MEGADETECTOR and answers.source is not None and answers.source.is_file():
        write_json(out, _written_back(answers, read_json(answers.source)))
        return
    ids = {name: str(number) for number, name in enumerate(answers.classes)}
    write_json(
        out,
        {
            "info": {
                "format_version": "1.6",
                "detector": "none: every box is the whole photograph" if not answers.boxes else "unknown",
                "classifier": answers.model,
                "classification_completion_time": f"{answers.time:%Y-%m-%d %H:%M:%S}",
            },
            "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"},
            "classification_categories": {number: name for name, number in ids.items()},
            "images": [_megadetector_image(answers, file, rows, ids) for file, rows in answers.photographs().items()],
        },
    )


def _megadetector_image(answers: Answers, file: str, rows: list[PredictionRow], ids: dict[str, str]) -> dict[str, Any]:
    read = [row for row in rows if row.status == "ok"]
    if not read:
        return {"file": file, "detections": None, "failure": f"{rows[0].status}: {rows[0].reason}"}
    return {"file": file, "detections": [box for row in read if (box := _detection(answers, row, ids)) is not None]}


def _detection(answers: Answers, row: PredictionRow, ids: dict[str, str]) -> dict[str, Any] | None:
    label = answers.label(row)
    kind = "animal" if label is None else kind_of(label)
    if kind == "blank":
        return None
    known = answers.boxes.get(row.path)
    bbox = WHOLE if known is None or known.box is None else known.box.values
    return {"category": _DETECTIONS[kind], "conf": 1.0, "bbox": bbox, "classifications": _ranked(answers, row, ids)}


def _ranked(answers: Answers, row: PredictionRow, ids: dict[str, str]) -> list[list[Any]]:
    return [] if answers.label(row) is None else [[ids[name], p] for name, p in row.top5]


def _written_back(answers: Answers, document: dict[str, Any]) -> dict[str, Any]:
    """The file that the boxes came from, with our classes in them; classes that it held keep their numbers."""
    categories = dict(document.get("classification_categories") or {})
    ids = {name: number for number, name in categories.items()}
    for name in answers.classes:
        if name not in ids:
            ids[name] = next(str(number) for number in count(len(categories)) if str(number) not in categories)
            categories[ids[name]] = name
    rows = {row.path: row for row in answers.rows if row.status == "ok"}
    images = {shown(text(image.get("file"))): image for image in document["images"]}
    missing = []
    for known in answers.boxes.values():
        detections = images.get(known.listed, {}).get("detections") or []
        if known.number > len(detections):
            missing.append(known.name)
        elif known.name in rows:
            detections[known.number - 1]["classifications"] = _ranked(answers, rows[known.name], ids)
    if missing:
        raise UserError(f"{answers.source} has changed since it was read: it has no box {missing[0]} any more; give it back its content")
    info = document.get("info") or {}
    ours = {"classifier": answers.model, "classification_completion_time": f"{answers.time:%Y-%m-%d %H:%M:%S}"}
    return document | {"info": {**info, **ours}, "classification_categories": categories}


def write_speciesnet(answers: Answers, out: Path) -> None:
    """SpeciesNet's ``predictions.json``; of a label's seven fields (id, five ranks, common name) the common name is the class."""
    write_json(out, {"predictions": [_speciesnet_image(answers, row) for row in answers.rows]})


def _speciesnet_image(answers: Answers, row: PredictionRow) -> dict[str, Any]:
    if row.status != "ok":
        return {"filepath": row.path, "failures": ["CLASSIFIER"], "model_version": answers.model}
    image: dict[str, Any] = {"filepath": row.path}
    if row.top5:
        image["classifications"] = {"classes": [_seven_fields(name) for name, _ in row.top5], "scores": [p for _, p in row.top5]}
    label = answers.label(row)
    if label is not None:
        source = "human" if row.answered else "classifier"
        image |= {"prediction": _seven_fields(label), "prediction_score": row.probability, "prediction_source": source}
    return image | {"model_version": answers.model}


def _seven_fields(name: str) -> str:
    # A semicolon in the name would make an eighth field.
    return ";" * 6 + name.replace(";", ",")
