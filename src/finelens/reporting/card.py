"""``MODEL_CARD.md``: what the model is, what it was made from, what is known about it and what it must not be used for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finelens.methods.method import ZERO_SHOT
from finelens.methods.registry import find_method
from finelens.reporting.record import RunRecord
from finelens.reporting.sections.cost import command, versions
from finelens.runs.repeat import options

# Characters that Markdown or the HTML inside it would read as markup.
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~-])")
LISTED = 200
# Methods that share a page.
PAGES = {"cupl": "zero-shot"}


def page_of(method: str) -> str:
    """Path of a method's documentation in the sources."""
    return f"docs/methods/{PAGES.get(method, method)}.md"


def model_card(record: RunRecord) -> str:
    """The card as Markdown."""
    judged = record.verdict
    how = "measured with labels" if judged.measured else "judged without labels"
    sections = {
        "What it is": _nature(record),
        "What it was made from": _sources(record),
        "Options that are not the default": _options(record),
        "What is known about it without labels": _signals(record),
        "Measured": _measured(record),
        "Intended use": [
            "Sorting images of the same kind as those it was fitted on into the classes below, with a person who looks at doubtful ones."
        ],
        "Limits": _limits(record),
        "Classes": _classes(record),
    }
    lines = [
        f"# Model card: {plain(record.title)} on {len(record.predicted)} unlabelled images",
        "",
        f"**Health, {how}:** {plain(judged.sentence)}",
        "",
    ]
    for title, body in sections.items():
        lines += [f"## {title}", "", *body, ""]
    return "\n".join(lines)


def _nature(record: RunRecord) -> list[str]:
    method = find_method(record.answering)
    return [
        f"- Method: {method.name} ({method.family}). {method.summary}",
        f"- Deviations from the paper: `{page_of(method.name)}` in the finelens sources",
        f"- Starts from: {plain(record.config.backbone)}",
        f"- Classes: {len(record.classes)}",
        f"- Versions: {', '.join(f'{plain(k)} {plain(v)}' for k, v in versions(record).items())}",
    ]


def _sources(record: RunRecord) -> list[str]:
    images, classes, start = (record.event(name).get("digest", "unknown") for name in ("images", "classes", "start"))
    return [
        f"- Images: {record.files} files, {record.readable} readable; SHA-256 over their contents `{images}`",
        f"- Class names and texts: SHA-256 `{classes}`",
        f"- Weights before adaptation: SHA-256 `{start}`",
        labels_line(record),
    ]


def _options(record: RunRecord) -> list[str]:
    changed = [f"- `{name}` = {plain(str(value))}" for name, value, different in options(record.config) if different]
    typed = [f"    {line}" for line in command(record.config, record.path).splitlines()]
    return [*(changed or ["- none: all options are the defaults"]), "", "Command:", "", *typed]


def _signals(record: RunRecord) -> list[str]:
    signals = record.measured.signals
    alone = ", by the model alone and not by what a person named" if record.answered is not None else ""
    return [
        f"- Agreement with the unadapted model: {signals.agreement:.1%}{alone}",
        f"- Classes never predicted: {signals.unused} of {signals.classes} (unadapted: {signals.unused_zero_shot})",
        f"- Largest class: {signals.largest:.1%} of the images (unadapted: {signals.largest_zero_shot:.1%})",
        f"- Mean probability of the predicted class: {signals.confidence:.1%}{alone} (unadapted: {signals.confidence_zero_shot:.1%}); "
        f"{record.calibration}",
    ]


def _limits(record: RunRecord) -> list[str]:
    return [
        "- It gives every image one of the classes below, also one that shows none of them. The column `none_of_these` of its tables is above 0.5",
        "  where that is probable, and can be wrong; probabilities alone, as an export gives them, do not say it.",
        "- Probabilities are estimates of the model, calibrated without labels at best; they are not promises about accuracy.",
        *_adapted(record),
        "- What the starting model learned about people, places and things, with its gaps and prejudices, is still in it.",
        "- Not for decisions about people, nor where a wrong class does harm that nobody checks.",
    ]


def _classes(record: RunRecord) -> list[str]:
    names = [f"- {plain(name)}" for name in record.classes[:LISTED]]
    return names if len(record.classes) <= LISTED else [*names, f"- and {len(record.classes) - LISTED} more"]


def _adapted(record: RunRecord) -> list[str]:
    if record.untrained is not None and record.answering == ZERO_SHOT:
        return []
    return ["- It was adapted to one collection. On images of another source it can be worse than the model it started from."]


def _measured(record: RunRecord) -> list[str]:
    found = record.evaluation
    if found is None:
        return ["Nothing: no labels were given. `finelens report RUN --labels FILE` measures it and writes this card again."]
    low, high = found["accuracy_interval"]
    return [
        f"On {found['n']} labelled images{_left_out(found)}, 95 % bootstrap interval in brackets:",
        "",
        f"- Accuracy: {found['accuracy']:.1%} [{low:.1%}, {high:.1%}]",
        f"- Mean over classes: {found['class_mean_accuracy']:.1%}",
        f"- Unadapted model, templates: {found['zero_shot_accuracy']:.1%}",
        f"- Expected calibration error: {found['ece']:.1%}",
        *_own(found),
    ]


def _own(found: Mapping[str, Any]) -> list[str]:
    count = found.get("adapted_to")
    return [f"- Of these images it was adapted to {count}, without labels; of new ones more or fewer may be right."] if count else []


def _left_out(found: Mapping[str, Any]) -> str:
    count = found.get("answered_left_out")
    return f" ({count} that a person answered left out)" if count else ""


def plain(text: str) -> str:
    """A text that Markdown shows as it is: no markup, no HTML, one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", text)


def labels_line(record: RunRecord) -> str:
    """What labels had to do with the fit."""
    if record.config.hints_file is None:
        return "- Labels: none. No label was read while it was fitted."
    count = record.event("hints").get("count", "some")
    if record.untrained is not None and record.answering == ZERO_SHOT:
        return f"- Labels: {count} photographs that a person said are of no class (`--hints`), without effect; no other label was read."
    if record.answered is not None:
        return f"- Labels: {record.answered.counts} (`--hints`); no other label was read."
    return f"- Labels: {count} photographs answered by a person (`--hints`); no other label was read."
