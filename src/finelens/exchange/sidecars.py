"""XMP files beside which a photograph may lie: keywords that digiKam, darktable, Lightroom and others read. The photograph is never touched."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from finelens.exchange.answers import Answers, below
from finelens.storage.files import write_bytes

_X, _RDF, _DC = "adobe:ns:meta/", "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://purl.org/dc/elements/1.1/"


def write_sidecars(answers: Answers, out: Path) -> None:
    """For each photograph with an answer ``PATH.xmp``, with the class as its keyword (``dc:subject``)."""
    for row in answers.read:
        label = answers.label(row)
        if label is not None:
            target = below(out, f"{row.path}.xmp")
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, _packet(label))


def _packet(keyword: str) -> bytes:
    for prefix, name in (("x", _X), ("rdf", _RDF), ("dc", _DC)):
        ElementTree.register_namespace(prefix, name)
    root = ElementTree.Element(f"{{{_X}}}xmpmeta")
    description = ElementTree.SubElement(ElementTree.SubElement(root, f"{{{_RDF}}}RDF"), f"{{{_RDF}}}Description", {f"{{{_RDF}}}about": ""})
    bag = ElementTree.SubElement(ElementTree.SubElement(description, f"{{{_DC}}}subject"), f"{{{_RDF}}}Bag")
    ElementTree.SubElement(bag, f"{{{_RDF}}}li").text = keyword
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"
