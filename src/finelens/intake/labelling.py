"""Label Studio's tasks and CVAT's images: what a person said in them are hints, what a machine said is not read."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from finelens.errors import UserError
from finelens.images.boxes import Box
from finelens.intake.contents import Contents, Said, distinct, number, text

LABEL_STUDIO, CVAT = "label-studio", "cvat"
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
MACHINE = "auto"


def label_studio(tasks: Sequence[Mapping[str, Any]], where: str) -> Contents:
    """Tasks as Label Studio exports them (JSON, not JSON-MIN): a choice is a hint about the photograph, a rectangle a row with its hint."""
    found = Contents(LABEL_STUDIO)
    for place, task in enumerate(tasks, start=1):
        names = _names(task.get("data"))
        if not names:
            raise UserError(f"{where}, task {place}: its data names no image; export the tasks with their data")
        machine = [result for prediction in _dicts(task.get("predictions")) for result in _dicts(prediction.get("result"))]
        if machine:
            found.left.add("predictions of another model", names[0])
        human = [
            result
            for annotation in _dicts(task.get("annotations"))
            if not annotation.get("was_cancelled")
            for result in _dicts(annotation.get("result"))
        ]
        found.classes += [label for result in (*human, *machine) for label in _labels(result)]
        _task(found, names, human)
    found.classes = distinct(found.classes)
    return found


def _task(found: Contents, names: tuple[str, ...], results: Sequence[Mapping[str, Any]]) -> None:
    rectangles = [result for result in results if result.get("type") == "rectanglelabels"]
    for place, result in enumerate(rectangles, start=1):
        value = result["value"] if isinstance(result.get("value"), dict) else {}
        part = Box.clipped(*(number(value.get(key)) / 100 for key in ("x", "y", "width", "height")))
        if part is None or number(value.get("rotation", 0)) != 0:
            found.left.add("rectangles that are turned, or without an area inside the photograph", f"{names[0]}#{place}")
            continue
        found.said.append(Said(names, place, part, _one(found, result, f"{names[0]}#{place}")))
    choices = [result for result in results if result.get("type") == "choices"]
    if rectangles:
        found.passed.append(names)
        for _ in choices:
            found.left.add("choices about photographs that have rectangles", names[0])
        return
    labels = distinct(label or "" for label in (_one(found, result, names[0]) for result in choices))
    if len(labels) > 1:
        found.left.add("photographs that people call by different names", names[0])
    found.said.append(Said(names, label=labels[0] if len(labels) == 1 else None))


def _one(found: Contents, result: Mapping[str, Any], name: str) -> str | None:
    labels = _labels(result)
    if len(labels) > 1:
        found.left.add("answers of several classes at once", name)
    return labels[0] if len(labels) == 1 else None


def _labels(result: Mapping[str, Any]) -> list[str]:
    kind, value = result.get("type"), result.get("value")
    if kind not in ("choices", "rectanglelabels") or not isinstance(value, dict):
        return []
    labels = value.get(str(kind))
    return distinct(map(text, labels)) if isinstance(labels, list) else []


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _names(data: Any) -> tuple[str, ...]:
    """What a task calls its photograph: the path that local files were served by, that of an address, or the name that an upload had."""
    values = [text(value) for value in data.values()] if isinstance(data, dict) else []
    address = text(data.get("image")) if isinstance(data, dict) else ""
    address = address or next((value for value in values if "/" in value or "." in value), "")
    if not address:
        return ()
    try:
        split = urlsplit(address)
    except ValueError:
        # No address, whatever it begins with.
        return (address,)
    local = parse_qs(split.query).get("d", [""])[0]
    path = unquote(split.path).lstrip("/") if split.scheme or address.startswith("/data/") else address
    base = path.rpartition("/")[2]
    return tuple(distinct((local, path if not local else "", _UPLOADED.sub("", base) if "/data/upload" in f"/{path}" else "")))


def cvat(content: str, where: str) -> Contents:
    """CVAT for images 1.1: a tag is a hint about the photograph, a box a row of its own with its hint; those of source ``auto`` are no hints."""
    # A file of this form declares no document type; one that does may be made to grow without bounds.
    if "<!DOCTYPE" in content or "<!ENTITY" in content:
        raise UserError(f"{where} declares a document type, which no CVAT export does; export it again")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{where} is not valid XML ({error}); export it again as CVAT for images 1.1") from error
    if root.tag != "annotations":
        raise UserError(f"{where} is XML, and no export of CVAT (its root is {root.tag}); export it as CVAT for images 1.1")
    if root.find("track") is not None:
        raise UserError(f"{where} is CVAT for video, which has no photographs; export it as CVAT for images 1.1")
    found = Contents(CVAT)
    for image in root.iter("image"):
        _cvat_image(found, image)
    named = [label.findtext("name", "").strip() for label in root.iterfind(".//labels/label")]
    used = [own.get("label", "").strip() for image in root.iter("image") for own in image if own.tag in ("tag", "box")]
    found.classes = distinct((*named, *used))
    return found


def _cvat_image(found: Contents, image: ElementTree.Element) -> None:
    name = image.get("name", "").strip()
    width, height = (_float(image.get(side)) for side in ("width", "height"))
    boxes = image.findall("box")
    for place, own in enumerate(boxes, start=1):
        left, top, right, bottom = (_float(own.get(edge)) for edge in ("xtl", "ytl", "xbr", "ybr"))
        part = Box.clipped(left / width, top / height, (right - left) / width, (bottom - top) / height) if width > 0 and height > 0 else None
        if part is None or _float(own.get("rotation", "0")) != 0:
            found.left.add("boxes that are turned, without an area, or of a photograph without its size", f"{name}#{place}")
            continue
        found.said.append(Said((name,), place, part, _human(found, own, f"{name}#{place}")))
    for own in image:
        if own.tag not in ("box", "tag"):
            found.left.add(f"shapes of kind {own.tag}", name)
        elif own.tag == "tag" and boxes:
            found.left.add("tags of photographs that have boxes", name)
    if boxes:
        found.passed.append((name,))
        return
    labels = distinct(_human(found, own, name) or "" for own in image.findall("tag"))
    if len(labels) > 1:
        found.left.add("photographs with several tags", name)
    found.said.append(Said((name,), label=labels[0] if len(labels) == 1 else None))


def _human(found: Contents, own: ElementTree.Element, name: str) -> str | None:
    if own.get("source", "manual") == MACHINE:
        found.left.add("labels of another model", name)
        return None
    return own.get("label", "").strip() or None


def _float(value: str | None) -> float:
    try:
        return float(value or "nan")
    except ValueError:
        return float("nan")
