"""What lies beside an export: class names, how views are made, licences, and what the comparison found."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from finelens.core.schemas import VERSION
from finelens.exporting.check import Difference
from finelens.exporting.licences import Licence, licence_of
from finelens.exporting.onnx_file import Weights
from finelens.exporting.program import INPUT, MOST_IMAGES, OUTPUT, input_names
from finelens.protocol import Backbone, Preprocess
from finelens.runs.classifier import Classifier
from finelens.storage.files import write_json

Target = Literal["open_clip", "transformers", "onnx", "torch"]
FILES: dict[Target, str] = {"torch": "classifier.pt2", "onnx": "classifier.onnx"}
DESCRIPTION = "classifier.json"
CARD = "MODEL_CARD.md"


def towers_of(classifier: Classifier) -> tuple[Backbone, ...]:
    """All image towers: the run's own, then the further encoders."""
    return classifier.backbone, *classifier.further_backbones


def describe(folder: Path, run: str | Path, classifier: Classifier, to: Target, weights: Weights, found: Difference, resize: bool) -> None:
    """Write the description and the card beside an export.

    Args:
        folder: Where the export lies.
        run: The run folder.
        classifier: The run.
        to: The target.
        weights: Type of the stored weights.
        found: How far its answers are from the run's.
        resize: Whether resize and crop are inside.
    """
    model = classifier.model
    photograph = {"name": "photograph", "type": "uint8", "shape": [1, 3, "height", "width"]}
    program = {
        "file": FILES.get(to),
        "weights": weights,
        "input": photograph if resize else _views(INPUT, classifier.backbone.preprocess),
        "output": {"name": OUTPUT, "type": "float32", "meaning": "softmax gives calibrated probabilities"},
        "further_encoders": [] if to not in FILES else _further(classifier, resize),
    }
    written = sorted(path.name for path in folder.iterdir())
    licences = {tower.name: licence_of(tower.name) for tower in towers_of(classifier)}
    write_json(
        folder / DESCRIPTION,
        {
            "format": "finelens-export",
            "finelens_version": VERSION,
            "target": to,
            "files": written,
            **(program if to in FILES else {}),
            "method": model.method,
            "backbone": classifier.backbone.name,
            "licence": _plain(licences[classifier.backbone.name]),
            "class_names": classifier.classes,
            "preprocess": asdict(classifier.backbone.preprocess),
            "temperature": model.temperature,
            "checked": asdict(found),
        },
    )
    card = Path(run) / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# Classifier of {len(classifier.classes)} classes\n"
    what = f"`{FILES[to]}`, {weights} weights" if to in FILES else f"{to}'s layout"
    beside = "".join(f", beside it `{name}`" for name in list(licences)[1:])
    text += (
        f"\n## Exported\n\nfinelens {VERSION} wrote this folder ({what}) from method `{model.method}` on backbone "
        f"`{classifier.backbone.name}`{beside}. {found.equal} of {found.images} answers are those of the run.\n\n## Licence\n\n"
    )
    text += "\n".join(_licence_text(name, licence) for name, licence in licences.items())
    (folder / CARD).write_text(text, encoding="utf-8")


def _further(classifier: Classifier, resize: bool) -> list[dict[str, Any]]:
    """Each further encoder with its input; with ``--resize`` all see the one photograph."""
    towers = classifier.further_backbones
    return [
        {
            "backbone": tower.name,
            "licence": _plain(licence_of(tower.name)),
            "preprocess": asdict(tower.preprocess),
            **({} if resize else {"input": _views(name, tower.preprocess)}),
        }
        for name, tower in zip(input_names(len(towers) + 1)[1:], towers, strict=True)
    ]


def _views(name: str, preprocess: Preprocess) -> dict[str, Any]:
    return {"name": name, "type": "uint8", "shape": ["batch", 3, preprocess.image_size, preprocess.image_size], "most": MOST_IMAGES}


def _plain(licence: Licence | None) -> dict[str, Any] | None:
    return None if licence is None else asdict(licence)


def _licence_text(backbone: str, licence: Licence | None) -> str:
    begin = f"The weights derive from `{backbone}` and stand under its licence"
    if licence is None:
        return (
            f"{begin}, which finelens does not know. Look it up before you pass this folder on: some, such as CLIP-Refine's and Apple's, allow "
            "research or evaluation only.\n"
        )
    warning = f"\n**Warning:** that licence rules out {licence.forbids}.\n" if licence.forbids else ""
    return f"{begin}: {licence.name}, as its publisher says ({licence.source}). Read it there before you pass this folder on.\n{warning}"
