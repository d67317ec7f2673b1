"""Boxes of animal detectors: MegaDetector's batch output, and SpeciesNet's predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finelens.images.boxes import Box
from finelens.intake.contents import Contents, Said, distinct, entries, number, numbers, objects, text

MEGADETECTOR = "megadetector"
SPECIESNET = "speciesnet"
# Of MegaDetector's own categories and of detectors that write in its form.
NO_ANIMALS = frozenset({"person", "human", "people", "vehicle", "car"})


def megadetector(document: Mapping[str, Any], confidence: float, where: str) -> Contents:
    """Batch output of version 1.x: each box of an animal is a row, numbered as in the file; its classifications are a machine's and no hints.

    Args:
        document: Parsed file.
        confidence: Boxes below it are left out.
        where: The file, for messages.
    """
    found = Contents(MEGADETECTOR)
    categories = document.get("detection_categories")
    named = {key: text(name) for key, name in categories.items()} if isinstance(categories, dict) else {}
    classified = document.get("classification_categories")
    found.classes = distinct(map(text, classified.values())) if isinstance(classified, dict) else []
    for image in entries(document, "images", where):
        file = text(image.get("file"))
        if image.get("failure"):
            found.left.add("photographs that the detector could not read", file)
            found.passed.append((file,))
            continue
        boxes = objects(image.get("detections") or [], f"{where}, {file}: detections")
        _take(found, file, boxes, [named.get(text(box.get("category")), "") for box in boxes], confidence)
    return found


def speciesnet(document: Mapping[str, Any], confidence: float, where: str) -> Contents:
    """``predictions.json``, or the ``instances.json`` that it was made from: boxes where it has detections, else a list of photographs.

    A label is seven fields with semicolons; the class is the common name, or else genus and species.
    """
    found = Contents(SPECIESNET)
    images = entries(document, "predictions" if "predictions" in document else "instances", where)
    labels = [label for image in images for label in (image.get("prediction"), *_classes(image))]
    found.classes = distinct(common_name(text(label)) for label in labels)
    detected = any("detections" in image for image in images)
    for image in images:
        file = text(image.get("filepath"))
        if not detected:
            found.said.append(Said((file,)))
            continue
        boxes = objects(image.get("detections") or [], f"{where}, {file}: detections")
        _take(found, file, boxes, [text(box.get("label")) for box in boxes], confidence)
    return found


def common_name(label: str) -> str:
    """The class of a SpeciesNet label (id, class, order, family, genus, species, common name); the label itself where it has other fields."""
    fields = label.split(";")
    if len(fields) != 7:
        return label
    return fields[6] or " ".join(fields[4:6]).strip().capitalize() or next((field.capitalize() for field in fields[3:0:-1] if field), "")


def _classes(image: Mapping[str, Any]) -> list[Any]:
    classified = image.get("classifications")
    classes = classified.get("classes") if isinstance(classified, dict) else None
    return classes if isinstance(classes, list) else []


def _take(found: Contents, file: str, boxes: Sequence[Mapping[str, Any]], categories: Sequence[str], confidence: float) -> None:
    taken = 0
    for place, (box, category) in enumerate(zip(boxes, categories, strict=True), start=1):
        name = f"{file}#{place}"
        if category.lower() in NO_ANIMALS:
            found.left.add(f"boxes of category {category}", name)
        elif not number(box.get("conf")) >= confidence:
            found.left.add(f"boxes below confidence {confidence:g}", name)
        else:
            values = numbers(box.get("bbox"), 4)
            part = None if values is None else Box.clipped(*values)
            if part is None:
                found.left.add("boxes without an area inside the photograph", name)
                continue
            found.said.append(Said((file,), place, part))
            taken += 1
    if not taken:
        found.left.add("photographs without a box to classify", file)
        found.passed.append((file,))
