"""Forms of labelling tools: Label Studio and CVAT."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from urllib.parse import quote

from finelens.exchange.answers import Answers
from finelens.storage.files import write_bytes, write_json
from finelens.storage.predictions import PredictionRow


def write_label_studio(answers: Answers, out: Path) -> None:
    """Tasks of Label Studio for its local files: an answer of the model is a prediction, one of a person an annotation.

    The tool's root (``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT``) has to be the folder of the photographs, and the labelling interface needs
    ``<Image name="image" value="$image"/>`` and ``<Choices name="choice" toName="image">``.
    """
    write_json(out, [_task(answers, row) for row in answers.rows])


def _task(answers: Answers, row: PredictionRow) -> dict[str, Any]:
    task: dict[str, Any] = {"data": {"image": f"/data/local-files/?d={quote(row.path)}"}}
    label = answers.label(row)
    if label is None:
        return task
    result = [{"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]
    if row.answered:
        return task | {"annotations": [{"result": result, "was_cancelled": False, "ground_truth": False}]}
    return task | {"predictions": [{"model_version": answers.model, "score": row.probability, "result": result}]}


def write_cvat(answers: Answers, out: Path) -> None:
    """CVAT for images 1.1: a tag for each answer, ``auto`` where the model gave it and ``manual`` where a person did."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for name in answers.classes:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "type").text = "tag"
    for number, row in enumerate(answers.rows):
        header = answers.header(row) if row.status == "ok" else None
        width, height = (header.width, header.height) if header else (0, 0)
        image = ElementTree.SubElement(root, "image", id=str(number), name=row.path, width=str(width), height=str(height))
        answer = answers.label(row)
        if answer is not None:
            ElementTree.SubElement(image, "tag", label=answer, source="manual" if row.answered else "auto")
    ElementTree.indent(root)
    write_bytes(out, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")
