"""``finelens export``: a run's classifier for another runtime, checked by value before it is called done."""

from __future__ import annotations

import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from finelens.backbones.registry import load_backbone
from finelens.classes.text_files import listing
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.exporting import check
from finelens.exporting.check import Difference, Runner
from finelens.exporting.describe import CARD, DESCRIPTION, FILES, Target, describe, towers_of
from finelens.exporting.heads import LinearHead, NotAHeadError, linear_head
from finelens.exporting.licences import is_folder, licence_of
from finelens.exporting.onnx_file import Weights, need_packages, write_onnx
from finelens.exporting.program import OUTPUT, exported, refuse_more_than_a_view
from finelens.feature_store.extra import check_encoders
from finelens.images.discover import ImageFile
from finelens.runs.classifier import Classifier, load_run
from finelens.storage.files import read_json, write_error


def export(
    run: str | Path,
    out: str | Path,
    *,
    to: Target,
    weights: Weights = "float32",
    resize: bool = False,
    overwrite: bool = False,
    extra_encoders: Sequence[str] = (),
    console: Console | None = None,
) -> Difference:
    """Write the classifier of a finished run for another runtime, and compare its answers with the run's.

    For ``torch`` and ``onnx`` it is one file: the input is uint8 centre views (B, 3, S, S), B from 1 to 1,024, with such views for each further
    encoder; the output is calibrated logits (B, C). The towers' normalisation is inside. For ``open_clip`` and ``transformers`` it is a folder in the
    library's own layout: adapted image tower, text tower, preprocessing and a linear head. Beside them lie ``classifier.json`` (class names, how
    views are made) and the run's model card.

    Args:
        run: The run folder.
        out: Folder to write.
        to: ``open_clip``, ``transformers``, ``onnx`` or ``torch`` (a program of torch.export).
        weights: Type of the stored weights; other than float32 for ``onnx`` only.
        resize: Whether the resize and the crop are inside, for ``onnx`` only: the input is one photograph of any size, uint8 (1, 3, H, W).
        overwrite: Whether an earlier export in ``out`` is replaced.
        extra_encoders: Where the weights of further encoders by name are now, if they have moved.
        console: What is said.

    Returns:
        How far the export's answers are from those of the run.

    Raises:
        UserError: Not a finished run, a method or model that the target cannot hold, or an export whose answers are not the run's.
    """
    console, out = console or Console(), Path(out)
    _check_options(to, weights, resize)
    _check_folder(out, overwrite)
    if to == "onnx":
        need_packages()
    classifier = load_run(run, extra_encoders=extra_encoders)
    _check_encoders(classifier, to)
    _check_stage(classifier, to)
    if classifier.model.engine.precision.dtype is not torch.float32:
        classifier = classifier.at_full_precision()
        console.say("the run computes in bfloat16; exported and compared is its float32")
    files = check.photographs(run)
    views = check.views_of(files, classifier, console)
    if to in FILES:
        console.say(f"exporting to {to}, which takes a minute or more for a large model; then {len(views[0])} answers are compared with the run's")
    with _quiet(), _beside(out) as work:
        if to in FILES:
            found = _write_file(work / FILES[to], classifier, to, weights, views)
            if resize:
                found = replace(found, files=_with_resize(work / FILES[to], classifier, files))
        else:
            found = _write_folder(work, classifier, to, views, files)
        describe(work, run, classifier, to, weights, found, resize)
        if out.exists():
            shutil.rmtree(out)
        os.replace(work, out)
    _say(out, to, found, console)
    _say_licences(classifier, console)
    return found


def _say(out: Path, to: Target, found: Difference, console: Console) -> None:
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    console.say(
        f"wrote {out / FILES.get(to, '')} ({size:.1f} MB); {found.equal} of {found.images} answers are the run's, "
        f"logits differ by at most {found.largest:.2g}"
    )
    if found.files is not None:
        console.say(f"with the export's own resize and crop, {found.files.equal} of {found.files.images} answers are the run's")


def _say_licences(classifier: Classifier, console: Console) -> None:
    """Warn of weights whose licence rules a use out."""
    for name in (tower.name for tower in towers_of(classifier)):
        licence = licence_of(name)
        if licence is not None and licence.forbids:
            stands = "by its name stands" if is_folder(name) else "stands"
            console.warn(f"{name} {stands} under {licence.name}, which rules out {licence.forbids}, and so does what was exported")


def _check_options(to: Target, weights: Weights, resize: bool) -> None:
    """Refuse what has an effect on a graph of operators only."""
    if to != "onnx" and weights != "float32":
        raise UserError(f"--weights {weights} has an effect with --to onnx only; leave it out")
    if to != "onnx" and resize:
        raise UserError("--resize has an effect with --to onnx only; leave it out")


def _check_stage(classifier: Classifier, to: Target) -> None:
    """Refuse a text tower that the run trained and did not keep."""
    if classifier.stage != "none" and to not in FILES:
        raise UserError(
            f"--to {to} holds a text tower beside the image tower, and the one that --stage {classifier.stage} left is not kept; "
            "--to onnx and --to torch hold what answers"
        )


def _check_encoders(classifier: Classifier, to: Target) -> None:
    """Refuse further encoders that the target has no place for, that are no part of the run, or that are no longer those of the run."""
    needed = classifier.model.extra
    if needed and to not in FILES:
        raise UserError(
            f"--to {to} holds one image tower, and the run looks at features of {listing([str(encoder) for encoder in needed])} as well; "
            "--to onnx and --to torch hold several"
        )
    files = [str(encoder) for encoder in needed if not encoder.encodes]
    if files:
        raise UserError(
            f"the run looks at features that {listing(files)} made, which came from a file, and an exported program needs the encoder itself; "
            "adapt with --extra-encoder in the place of --extra"
        )
    check_encoders(needed, classifier.extra)


def _write_file(path: Path, classifier: Classifier, to: Target, weights: Weights, views: tuple[Tensor, ...]) -> Difference:
    """Write one file that answers from views, and ask it."""
    program = exported(classifier.model, classifier.further_backbones)
    if to == "torch":
        # By way of memory: where the disk is full, torch's own writer ends the process.
        torch.export.save(program, held := io.BytesIO())
        path.write_bytes(held.getbuffer())
    else:
        write_onnx(program, path, weights, len(views))
    found = check.compare(classifier, runner(path, to), *views)
    check.refuse(found, exact=weights == "float32")
    return found


def _with_resize(path: Path, classifier: Classifier, files: list[ImageFile]) -> Difference:
    """Put resize and crop into an ONNX file, and compare it on whole photographs."""
    from finelens.exporting import onnx_resize

    for preprocess in classifier.preprocesses:
        onnx_resize.check(preprocess)
    onnx_resize.put_in_front(path, classifier.preprocesses, classifier.limits.short_side)
    answer = runner(path, "onnx")
    found = check.compare_files(classifier, lambda image: answer(_pixels(image))[0], files)
    if found is None:
        raise UserError("--resize is compared on the run's photographs, and these are not where they were; put them there, or leave it out")
    check.refuse(found, exact=False)
    return found


def _pixels(image: Image.Image) -> Tensor:
    """An RGB photograph as (1, 3, H, W), uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].contiguous()


def as_target(name: str) -> Target:
    """The target of that name; raises :class:`~finelens.errors.UserError` if there is none."""
    return cast(Target, _known(name, get_args(Target), "target"))


def as_weights(name: str) -> Weights:
    """The type of stored weights of that name; raises :class:`~finelens.errors.UserError` if there is none."""
    return cast(Weights, _known(name, get_args(Weights), "type of weights"))


def _known(name: str, names: Sequence[str], what: str) -> str:
    if name not in names:
        raise UserError(f"unknown {what} {name!r}; known are: {', '.join(names)}")
    return name


def _write_folder(work: Path, classifier: Classifier, to: Target, views: tuple[Tensor, ...], files: list[ImageFile]) -> Difference:
    """Write a folder in the layout of another library, and ask that library."""
    model = classifier.model
    refuse_more_than_a_view(model)
    from finelens.backbones.transformers_source import quiet
    from finelens.exporting import open_clip_folder, transformers_folder

    target: Any = open_clip_folder if to == "open_clip" else transformers_folder
    target.refuse(classifier.backbone)
    (own,) = views
    with torch.no_grad():
        seen = torch.cat([model.engine.encode_frozen(part).global_ for part in own.split(16)])
    try:
        head = linear_head(model, seen)
    except NotAHeadError as error:
        raise UserError(
            f"--to {to} holds a linear head on the image feature, and the answer of method {model.method} is none: {error}; "
            "--to onnx and --to torch hold more (docs/export.md)"
        ) from error
    with quiet():
        return _written_folder(work, classifier, target, head, seen, own, files)


def _written_folder(
    work: Path, classifier: Classifier, target: Any, head: LinearHead, seen: Tensor, views: Tensor, files: list[ImageFile]
) -> Difference:
    model = classifier.model
    target.write(model, head, work)
    theirs = target.Folder(work)
    found = check.compare(_up_to_a_number(classifier), _up_to_a_number(theirs.of_views), views)
    check.refuse(found, exact=True)
    target.check_texts(theirs, model, load_backbone(classifier.backbone.name), seen, views)
    through_files = check.compare_files(classifier, theirs.of_image, files)
    if through_files is not None:
        check.refuse(through_files, exact=False)
    return Difference(found.images, found.largest, found.equal, through_files)


def _up_to_a_number(answer: Runner) -> Runner:
    return lambda *views: answer(*views).log_softmax(1)


def _check_folder(out: Path, overwrite: bool) -> None:
    ours = out.is_dir() and (out / DESCRIPTION).is_file() and {path.name for path in out.iterdir()} <= _own_files(out / DESCRIPTION)
    if os.path.lexists(out) and not (ours and overwrite):
        raise UserError(f"{out} exists; give a new folder" + (", or --overwrite to replace the earlier export" if ours else ""))


def _own_files(description: Path) -> set[str]:
    """What an earlier export wrote, by its own description."""
    told = read_json(description)
    listed = told.get("files", []) if isinstance(told, dict) else []
    return {*FILES.values(), DESCRIPTION, CARD, *(name for name in listed if isinstance(name, str))}


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


def runner(path: Path, to: Target, threads: int | None = None) -> Runner:
    """What answers from the file alone: logits (B, C) of views (B, 3, S, S), or of what its inputs are.

    Args:
        path: The file.
        to: ``torch`` or ``onnx``.
        threads: Of onnxruntime; by default as many as it takes.
    """
    if to == "torch":
        module = torch.export.load(path).module()
        return lambda *views: module(*views)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda *views: torch.from_numpy(session.run([OUTPUT], {name: own.numpy() for name, own in zip(names, views, strict=True)})[0])


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
