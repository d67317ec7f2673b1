"""``finelens export``: a run's classifier for another runtime, checked by value before it is called done."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from finelens.core.console import Console
from finelens.core.schemas import VERSION
from finelens.errors import UserError
from finelens.export.onnx_file import Weights, need_packages, write_onnx
from finelens.export.program import INPUT, MOST_IMAGES, OUTPUT, exported
from finelens.images.discover import visible_files
from finelens.images.store import load_images
from finelens.images.views import centre_view
from finelens.runs.classifier import Classifier, load_run
from finelens.runs.folder import RunFolder
from finelens.storage.files import write_error, write_json

Target = Literal["torch", "onnx"]
FILES: dict[Target, str] = {"torch": "classifier.pt2", "onnx": "classifier.onnx"}
DESCRIPTION = "classifier.json"
CARD = "MODEL_CARD.md"
CHECKED = 64
# Of logits, between two float32 programs of the same model.
TOLERANCE = 1e-2
# Share of the classes that smaller weights must leave as they are; how many they did is printed and written down.
LEAST_EQUAL = 0.5
Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Difference:
    """How far an exported file is from the run.

    Attributes:
        images: Views that both were asked about.
        largest: Largest difference of a logit.
        equal: Views with the same class.
    """

    images: int
    largest: float
    equal: int


def export(
    run: str | Path, out: str | Path, *, to: Target, weights: Weights = "float32", overwrite: bool = False, console: Console | None = None
) -> Difference:
    """Write the classifier of a finished run for another runtime, and compare its answers with the run's.

    The input is uint8 centre views (B, 3, S, S), B from 1 to 1,024, the output calibrated logits (B, C); the tower's normalisation is inside. Beside
    the file lie ``classifier.json`` (class names, how views are made) and the run's model card.

    Args:
        run: The run folder.
        out: Folder to write.
        to: ``torch`` (a program of torch.export) or ``onnx``.
        weights: Type of the stored weights; other than float32 for ``onnx`` only.
        overwrite: Whether an earlier export in ``out`` is replaced.
        console: What is said.

    Raises:
        UserError: Not a finished run, a method or model that cannot be exported, or a file whose answers are not the run's.
    """
    console, out = console or Console(), Path(out)
    if to != "onnx" and weights != "float32":
        raise UserError(f"--weights {weights} has an effect with --to onnx only; leave it out")
    _check_folder(out, overwrite)
    if to == "onnx":
        need_packages()
    classifier = load_run(run)
    if classifier.model.engine.precision.dtype is not torch.float32:
        classifier = classifier.at_full_precision()
        console.say("the run computes in bfloat16; exported and compared is its float32")
    with _quiet():
        program = exported(classifier.model)
        with _beside(out) as work:
            path = work / FILES[to]
            if to == "torch":
                torch.export.save(program, path)
            else:
                write_onnx(program, path, weights)
            difference = compare(classifier, runner(path, to), _views(run, classifier, console))
            _refuse(difference, weights)
            _describe(work, run, classifier, to, weights, difference)
            if out.exists():
                shutil.rmtree(out)
            os.replace(work, out)
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    console.say(
        f"wrote {out / FILES[to]} ({size:.1f} MB); {difference.equal} of {difference.images} answers are the run's, "
        f"logits differ by at most {difference.largest:.2g}"
    )
    return difference


def _check_folder(out: Path, overwrite: bool) -> None:
    ours = out.is_dir() and (out / DESCRIPTION).is_file() and {path.name for path in out.iterdir()} <= {*FILES.values(), DESCRIPTION, CARD}
    if os.path.lexists(out) and not (ours and overwrite):
        raise UserError(f"{out} exists; give a new folder" + (", or --overwrite to replace the earlier export" if ours else ""))


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A new folder on the same disk, to be renamed; it goes where it was not."""
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        parent = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    except OSError as error:
        raise write_error(out, error) from error
    try:
        work = parent / out.name
        work.mkdir()
        yield work
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _refuse(difference: Difference, weights: Weights) -> None:
    """Raise where the file is not the run's classifier. NaN is never near."""
    near = difference.largest <= TOLERANCE if weights == "float32" else difference.equal >= LEAST_EQUAL * difference.images
    if not (near and math.isfinite(difference.largest)):
        raise UserError(
            f"the exported file answers otherwise than the run (logits by {difference.largest:.2g}, "
            f"{difference.images - difference.equal} of {difference.images} classes): nothing is kept"
        )


def runner(path: Path, to: Target) -> Runner:
    """What answers from the file alone: logits (B, C) of views (B, 3, S, S)."""
    if to == "torch":
        module = torch.export.load(path).module()
        return lambda views: module(views)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda views: torch.from_numpy(session.run([OUTPUT], {INPUT: views.numpy()})[0])


@torch.no_grad()
def compare(classifier: Classifier, answer: Runner, views: Tensor) -> Difference:
    """A batch of one and batches of sixteen, so that a fixed batch shows."""
    parts = [views[:1], *views[1:].split(16)]
    theirs = torch.cat([answer(part) for part in parts if len(part)])
    ours = torch.cat([classifier(part) for part in parts if len(part)])
    return Difference(len(views), float((theirs - ours).abs().max()), int((theirs.argmax(1) == ours.argmax(1)).sum()))


def _views(run: str | Path, classifier: Classifier, console: Console) -> Tensor:
    """Centre views (n, 3, S, S) of the run's first photographs; of noise where these are gone."""
    photos, preprocess = Path(RunFolder.open(run, lock=False).config.photos), classifier.backbone.preprocess
    files = visible_files(photos)[:CHECKED] if photos.is_dir() else []
    store = load_images(files, classifier.limits).store if files else ()
    if len(store):
        return torch.stack([centre_view(store[i], preprocess) for i in range(len(store))])
    console.say("the run's photographs are not where they were: the answers to noise are compared")
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (CHECKED, 3, preprocess.image_size, preprocess.image_size), dtype=torch.uint8, generator=generator)


def _describe(folder: Path, run: str | Path, classifier: Classifier, to: Target, weights: Weights, difference: Difference) -> None:
    model = classifier.model
    write_json(
        folder / DESCRIPTION,
        {
            "format": "finelens-export",
            "finelens_version": VERSION,
            "file": FILES[to],
            "weights": weights,
            "method": model.method,
            "backbone": classifier.backbone.name,
            "class_names": classifier.classes,
            "input": {"name": INPUT, "type": "uint8", "shape": ["batch", 3, *[classifier.backbone.preprocess.image_size] * 2], "most": MOST_IMAGES},
            "output": {"name": OUTPUT, "type": "float32", "meaning": "softmax gives calibrated probabilities"},
            "preprocess": asdict(classifier.backbone.preprocess),
            "temperature": model.temperature,
            "checked": asdict(difference),
        },
    )
    card = Path(run) / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# Classifier of {len(classifier.classes)} classes\n"
    text += (
        f"\n## Exported\n\nfinelens {VERSION} wrote this folder (`{FILES[to]}`, {weights} weights) from method `{model.method}` on backbone "
        f"`{classifier.backbone.name}`. {difference.equal} of {difference.images} answers are those of the run.\n\n"
        "The weights derive from that backbone and stand under its licence. Look it up before you pass this folder on: some, such as CLIP-Refine's "
        "and Apple's, allow research or evaluation only.\n"
    )
    (folder / CARD).write_text(text, encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of every operator and every weight."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
