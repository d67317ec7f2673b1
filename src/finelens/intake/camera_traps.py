"""Lists of camera-trap archives: COCO Camera Traps, Camtrap DP, Wildlife Insights. Their classes give names; they are no hints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from finelens.images.boxes import Box
from finelens.intake.contents import Contents, Said, distinct, entries, identity, number, numbers, text

COCO, CAMTRAP_DP, WILDLIFE_INSIGHTS = "coco-ct", "camtrap-dp", "wildlife-insights"
# Category 0 of COCO Camera Traps.
EMPTY = "empty"


def coco(document: Mapping[str, Any], where: str) -> Contents:
    """Boxes in pixels or in shares, each a row, numbered within its photograph; a file without any box is a list of photographs."""
    found = Contents(COCO)
    images = entries(document, "images", where)
    categories = {identity(entry.get("id")): text(entry.get("name")) for entry in entries(document, "categories", where)}
    boxes: dict[Any, list[Mapping[str, Any]]] = {}
    for own in entries(document, "annotations", where) if "annotations" in document else []:
        if "bbox" in own or "bbox_relative" in own:
            boxes.setdefault(identity(own.get("image_id")), []).append(own)
    found.classes = distinct(name for name in categories.values() if not boxes or name != EMPTY)
    for image in images:
        file = text(image.get("file_name"))
        if not boxes:
            found.said.append(Said((file,)))
            continue
        drawn = boxes.get(identity(image.get("id")), [])
        for place, annotation in enumerate(drawn, start=1):
            part = _box(annotation, image)
            if part is None:
                found.left.add("boxes without an area inside the photograph, or in pixels of one without width and height", f"{file}#{place}")
            else:
                found.said.append(Said((file,), place, part))
        if not drawn:
            found.left.add("photographs without a box", file)
            found.passed.append((file,))
    return found


def _box(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> Box | None:
    shares = numbers(annotation.get("bbox_relative"), 4)
    if shares is not None:
        return Box.clipped(*shares)
    pixels = numbers(annotation.get("bbox"), 4)
    width, height = number(image.get("width")), number(image.get("height"))
    if pixels is None or not (width > 0 and height > 0):
        return None
    x, y, w, h = pixels
    return Box.clipped(x / width, y / height, w / width, h / height)


def camtrap_dp(description: Mapping[str, Any], media: Sequence[Mapping[str, str]]) -> Contents:
    """The media of a Camtrap DP that are images; class names are the scientific names of its ``taxonomic`` list."""
    found = Contents(CAMTRAP_DP)
    taxa = description.get("taxonomic")
    found.classes = distinct(text(taxon.get("scientificName")) for taxon in (taxa if isinstance(taxa, list) else []) if isinstance(taxon, dict))
    for row in media:
        kind, path = row.get("fileMediatype", ""), row.get("filePath", "")
        names = tuple(distinct((path, row.get("fileName", ""), row.get("mediaID", ""))))
        if kind and not kind.startswith("image/"):
            found.left.add(f"media of type {kind}", path)
        else:
            found.said.append(Said(names))
    return found


def wildlife_insights(rows: Sequence[Mapping[str, str]]) -> Contents:
    """The photographs of ``images.csv``; class names are its common names, or else genus and species."""
    found = Contents(WILDLIFE_INSIGHTS)
    found.classes = distinct(row.get("common_name", "") or f"{row.get('genus', '')} {row.get('species', '')}".strip() for row in rows)
    for row in rows:
        location, file = row.get("location", ""), row.get("filename", "")
        place = f"{row.get('deployment_id', '')}/{PurePosixPath(file).name}" if row.get("deployment_id") and file else ""
        found.said.append(Said(tuple(distinct((location, row.get("image_id", "") if "/" in row.get("image_id", "") else "", place, file)))))
    return found
