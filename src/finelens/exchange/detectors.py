"""Forms of animal detectors and their classifiers: MegaDetector's batch results (Timelapse, AddaxAI) and SpeciesNet's predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finelens.exchange.answers import Answers
from finelens.exchange.kinds import kind_of
from finelens.storage.files import write_json
from finelens.storage.predictions import PredictionRow

# The classifier looked at the whole photograph: one box around all of it, in shares of width and height.
WHOLE = (0, 0, 1, 1)
_DETECTIONS = {"animal": "1", "human": "2", "vehicle": "3"}


def write_megadetector(answers: Answers, out: Path) -> None:
    """MegaDetector batch output, format 1.6: each photograph one box around all of it, with its likeliest classes.

    A class named like a person or a vehicle makes the box one of those; one named like an empty photograph makes no box. What was not read is a
    ``failure``.
    """
    ids = {name: str(number) for number, name in enumerate(answers.classes)}
    write_json(
        out,
        {
            "info": {
                "format_version": "1.6",
                "detector": "none: every box is the whole photograph",
                "classifier": answers.model,
                "classification_completion_time": f"{answers.time:%Y-%m-%d %H:%M:%S}",
            },
            "detection_categories": {"1": "animal", "2": "person", "3": "vehicle"},
            "classification_categories": {number: name for name, number in ids.items()},
            "images": [_megadetector_image(answers, row, ids) for row in answers.rows],
        },
    )


def _megadetector_image(answers: Answers, row: PredictionRow, ids: dict[str, str]) -> dict[str, Any]:
    if row.status != "ok":
        return {"file": row.path, "detections": None, "failure": f"{row.status}: {row.reason}"}
    label = answers.label(row)
    kind = "animal" if label is None else kind_of(label)
    if kind == "blank":
        return {"file": row.path, "detections": []}
    ranked = [] if label is None else [[ids[name], p] for name, p in row.top5]
    return {"file": row.path, "detections": [{"category": _DETECTIONS[kind], "conf": 1.0, "bbox": WHOLE, "classifications": ranked}]}


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
