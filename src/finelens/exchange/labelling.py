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
    ``<Image name="image" value="$image"/>`` and ``<Choices name="choice" toName="image">``, or for boxes
    ``<RectangleLabels name="box" toName="image">``.
    """
    write_json(out, [_task(answers, number, *named) for number, named in enumerate(answers.photographs().items(), 1)])


def _task(answers: Answers, number: int, file: str, rows: list[PredictionRow]) -> dict[str, Any]:
    # An import gives tasks numbers of its own; the tool's converter reads no task without one.
    task: dict[str, Any] = {"id": number, "data": {"image": f"/data/local-files/?d={quote(file)}"}}
    said = [row for row in rows if answers.label(row) is not None]
    if human := [row for row in said if row.answered]:
        task["annotations"] = [{"result": [_result(answers, row) for row in human], "was_cancelled": False, "ground_truth": False}]
    if machine := [row for row in said if not row.answered]:
        score = min(row.probability or 0.0 for row in machine)
        task["predictions"] = [{"model_version": answers.model, "score": score, "result": [_result(answers, row) for row in machine]}]
    return task


def _result(answers: Answers, row: PredictionRow) -> dict[str, Any]:
    label, known = answers.label(row), answers.boxes.get(row.path)
    if known is None or known.box is None:
        return {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
    x, y, width, height = (100 * share for share in known.box.values)
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [label]}
    header = answers.header(row)
    sizes = {} if header is None else {"original_width": header.width, "original_height": header.height}
    return {"id": row.path, "from_name": "box", "to_name": "image", "type": "rectanglelabels", **sizes, "score": row.probability, "value": value}


def write_cvat(answers: Answers, out: Path) -> None:
    """CVAT for images 1.1: a tag for each answer, ``auto`` where the model gave it and ``manual`` where a person did."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for name in answers.classes:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = name
        ElementTree.SubElement(label, "type").text = "tag" if not answers.boxes else "rectangle"
    for number, (file, rows) in enumerate(answers.photographs().items()):
        read = next((row for row in rows if row.status == "ok"), None)
        header = None if read is None else answers.header(read)
        width, height = (header.width, header.height) if header else (0, 0)
        image = ElementTree.SubElement(root, "image", id=str(number), name=file, width=str(width), height=str(height))
        for row in rows:
            _cvat_answer(answers, row, image, width, height)
    ElementTree.indent(root)
    write_bytes(out, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def _cvat_answer(answers: Answers, row: PredictionRow, image: ElementTree.Element, width: int, height: int) -> None:
    answer, known = answers.label(row), answers.boxes.get(row.path)
    if answer is None:
        return
    source = "manual" if row.answered else "auto"
    if known is None or known.box is None:
        ElementTree.SubElement(image, "tag", label=answer, source=source)
        return
    x, y, w, h = known.box.values
    edges = {"xtl": x * width, "ytl": y * height, "xbr": (x + w) * width, "ybr": (y + h) * height}
    drawn = {"label": answer, "source": source, "occluded": "0", "z_order": "0"}
    ElementTree.SubElement(image, "box", drawn | {edge: f"{value:.2f}" for edge, value in edges.items()})
