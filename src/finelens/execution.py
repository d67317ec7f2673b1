"""One run, from its configuration to the files in its folder."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from finelens.cache import spill_folder, state_digest
from finelens.classes.descriptions import load_descriptions
from finelens.classes.names import read_class_file
from finelens.config import RunConfig, diff, from_json, from_mapping, to_json
from finelens.console import Console, Mute, duration
from finelens.errors import UserError
from finelens.feature_store.encoder import FeatureEncoder
from finelens.feature_store.extra import ExtraFiles, read_extra
from finelens.feature_store.files import FeatureFile
from finelens.feature_store.runs import open_source
from finelens.files import write_text
from finelens.health import balance, collapse_warning
from finelens.health.signals import Measured, measure, nearest_images, write_measured
from finelens.hints import check_hints, describe_hints, given_hints, hints_digest, read_hint_labels, read_hints
from finelens.images.store import LoadedImages
from finelens.images.strict import note_complaints
from finelens.loading import decode_limits, load, status_counts
from finelens.methods.joint_gmm import JointGmmConfig
from finelens.methods.registry import find_method
from finelens.methods.view_task import ViewTask
from finelens.models import Model, save_model
from finelens.pipeline import Fitted, Prepared, fit, prepare, release_text, run_temperature
from finelens.prediction import predict_store
from finelens.predictions import PredictionRow, rows_from_logits, write_predictions
from finelens.protocol import ClassSet, Hints
from finelens.runs import RunFolder
from finelens.schemas import CHECKPOINT_DIR, EVENTS_FILE
from finelens.strict import to_plain
from finelens.training.checkpoint import read_events_offset
from finelens.training.distributed import ALONE, Processes
from finelens.training.flops import speed_line
from finelens.training.loop import Hooks

# What a process has read, by the event that logs its hash.
_READ = {
    "start": "weights",
    "images": "photographs",
    "classes": "class texts",
    "hints": "hints",
    "support": "support images",
    "extra": "extra features",
}


@dataclass(frozen=True)
class RunResult:
    """What a finished run says.

    Attributes:
        path: The run folder.
        rows: The rows of ``predictions.csv``.
        untrained: Why nothing was trained though the method trains (``training.guard``); None where it was.
    """

    path: Path
    rows: list[PredictionRow]
    untrained: str | None = None


@dataclass(frozen=True)
class Inputs:
    """Everything a run reads, loaded and checked.

    Attributes:
        prepared: Backbone, texts and task.
        loaded: Images and one record per file.
        hints: Classes that the user gave for a few of them; None without.
        digests: Hashes of the unadapted image tower, the images and the classes, by the event that logs them; whatever the files are called.
        choice: Why ``--method auto`` chose the run's method; None where the user named it.
    """

    prepared: Prepared
    loaded: LoadedImages | FeatureFile
    hints: Hints | None
    digests: dict[str, str]
    choice: str | None = None


def images_digest(loaded: LoadedImages | FeatureFile) -> str:
    """Hash of the readable images' contents."""
    return hashlib.sha256("\n".join(loaded.store.ids).encode()).hexdigest()


def classes_digest(classes: ClassSet) -> str:
    """Hash of the class names and of every text about them."""
    return hashlib.sha256(json.dumps(to_plain(classes)).encode()).hexdigest()


def prototypes_digest(prepared: Prepared) -> str:
    """Hash of the class names and of the prototypes that stand for their texts."""
    heads = prepared.heads
    state = {"templates": heads.templates, "descriptions": heads.descriptions, "weighted": heads.weighted}
    return hashlib.sha256((classes_digest(prepared.classes) + state_digest(state)).encode()).hexdigest()


def read_inputs(config: RunConfig, console: Console, hints_copy: Path | None = None, processes: Processes = ALONE) -> Inputs:
    """Read classes, descriptions, backbone and images; the quick checks come first. Nothing is written but the cache.

    Args:
        config: What the run is.
        console: What to say.
        hints_copy: Read in the place of the user's hints file: what the run that is resumed was started with.
        processes: Those of the run; each reads for itself.

    Raises:
        UserError: Any of them cannot be used, or the processes have read different things.
    """
    processes.check_same({"options": json.dumps(to_json(config), sort_keys=True)})
    check_hints(find_method(config.method), given=config.hints_file is not None)
    if processes.count > 1:
        console.say(f"processes: {processes.count} share the images; this is the first")
    names = read_class_file(Path(str(config.classes_file)))
    descriptions = None if config.descriptions_file is None else Path(config.descriptions_file)
    if descriptions is not None:
        load_descriptions(descriptions)
    hints_file = hints_copy or (None if config.hints_file is None else Path(config.hints_file))
    if hints_file is not None and Path(config.photos).is_dir():
        read_hint_labels(hints_file, Path(config.photos), names)
    further = extra_files(config)
    source = open_source(config, find_method(config.method))
    if isinstance(source, FeatureFile):
        prepared = prepare(config, names, descriptions, console, source, processes=processes)
        loaded: LoadedImages | FeatureFile = source
    else:
        prepared = prepare(config, names, descriptions, console, processes=processes)
        with prepared.engine.stopwatch("decode"):
            loaded = load(source, decode_limits(config, prepared.engine.backbone.preprocess), console, spill_folder())
        if config.strict:
            loaded = replace(loaded, records=note_complaints(source, loaded.records, console))
    if further is not None:
        prepared = replace(prepared, extra=further.of(loaded))
    counts = status_counts(loaded.records)
    console.say(f"images: {len(loaded.records)} files, " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    digests = {
        "start": state_digest(prepared.engine.backbone.image_state()),
        "images": images_digest(loaded),
        "classes": classes_digest(prepared.classes) if config.prototypes_file is None else prototypes_digest(prepared),
    }
    if prepared.support is not None:
        digests["support"] = prepared.support.digest
    if prepared.extra is not None:
        digests["extra"] = prepared.extra.digest
    hints = None
    if hints_file is not None:
        hints = read_hints(hints_file, Path(config.photos), loaded.records, prepared.classes.names)
        digests["hints"] = hints_digest(hints)
        console.say(describe_hints(hints, prepared.classes.names))
    processes.check_same({_READ[name]: digest for name, digest in digests.items()})
    return Inputs(prepared, loaded, hints, digests)


def extra_files(config: RunConfig) -> ExtraFiles | None:
    """Feature files of further encoders that a run names among its method's options; None where it names none.

    Raises:
        UserError: They cannot be read.
    """
    options: Any = from_mapping(find_method(config.method).config_class, config.method_options, "method")
    if not isinstance(options, JointGmmConfig):
        return None
    return read_extra(options.files, options.extra_names, source_named=config.row_names_file is not None)


def execute(run: RunFolder, inputs: Inputs, console: Console, should_stop: Callable[[], bool] | None = None, *, resume: bool = False) -> RunResult:
    """Adapt, predict and write the run's files; of several processes, what the first one does.

    Args:
        run: The folder, locked.
        inputs: What the run reads.
        console: What to say.
        should_stop: Asked after each training step.
        resume: Go on from the checkpoint, if there is one.

    Raises:
        UserError: The inputs are not those the run was started with.
        Interrupted: ``should_stop`` said so.
    """
    offset = read_events_offset(run.checkpoint_dir) if resume else 0
    fresh = offset == 0
    if not fresh:
        _refuse_changes(run, inputs)
    if resume:
        run.resume(offset)
    loaded = inputs.loaded
    counts = status_counts(loaded.records)
    if fresh:
        offset = _log_start(run, inputs, counts)
    stop = should_stop or (lambda: False)
    hooks = Hooks(run=run, checkpoints=run.checkpoint_dir, failures=run.failure_dir, events_offset=offset, should_stop=stop)
    fitted, logits, nearest, rows = _answer(run.config, inputs, console, hooks, resume=not fresh)
    if fitted.untrained is not None:
        run.log("guard", reason=fitted.untrained)
    with inputs.prepared.engine.stopwatch("write"):
        save_model(run.model_dir, fitted.model)
        write_predictions(run.predictions_path, rows)
        write_measured(run.signals_path, _measure(fitted, logits, loaded, nearest))
    run.log("predictions", rows=len(rows), counts=counts)
    _finish(run, fitted.model, rows, console)
    # The other processes may be gone by now.
    with fitted.model.engine.alone():
        _report(run, fitted.model, loaded, console)
    return RunResult(run.path, rows, fitted.untrained)


def follow(path: Path, config: RunConfig, inputs: Inputs, should_stop: Callable[[], bool] | None = None, *, resume: bool = False) -> RunResult:
    """What the other processes do: the same work, and nothing is said or written.

    Args:
        path: The run folder; its checkpoint is read on resume.
        config: The configuration of the run.
        inputs: As for :func:`execute`, like all that follow.
        should_stop: True in one process stops all.
        resume: The same in all.
    """
    checkpoints = path / CHECKPOINT_DIR
    hooks = Hooks(checkpoints=checkpoints, should_stop=should_stop or (lambda: False))
    fitted, *_, rows = _answer(config, inputs, Mute(), hooks, resume=resume and read_events_offset(checkpoints) > 0)
    return RunResult(path, rows, fitted.untrained)


def _answer(config: RunConfig, inputs: Inputs, console: Console, hooks: Hooks, *, resume: bool) -> tuple[Fitted, Tensor, Tensor, list[PredictionRow]]:
    """The fitted model, its calibrated logits (N, C), the nearest images (N, K) and a row for every file."""
    prepared, loaded = inputs.prepared, inputs.loaded
    release_text(prepared)
    fitted = fit(prepared, loaded.store, config, console, hooks, hints=inputs.hints, resume=resume)
    logits = predict_store(fitted.model, loaded.store, console, fitted.features, _view_encoder(fitted.model, loaded, config, console))["logits"]
    nearest = nearest_images(fitted.looks, len(prepared.classes))
    if config.calibration:
        fitted.model.temperature = run_temperature(fitted, logits, nearest)
        console.say(f"calibration: logits divided by {fitted.model.temperature:.3g}, found without labels")
    logits = fitted.model.calibrated(logits)
    rows = rows_from_logits(loaded.records, prepared.classes.names, logits.numpy(), fitted.zero_shot_logits.argmax(1).numpy())
    return fitted, logits, nearest, rows


def _view_encoder(model: Model, loaded: LoadedImages | FeatureFile, config: RunConfig, console: Console) -> FeatureEncoder | None:
    """What keeps the views of a method that looks at many; None for another."""
    if not isinstance(model.task, ViewTask) or isinstance(loaded, FeatureFile):
        return None
    encoder = FeatureEncoder(model.engine, decode_limits(config, model.engine.backbone.preprocess).short_side)
    encoder.say_size(len(loaded.store), model.task.inference.count, console)
    return encoder


def _measure(fitted: Fitted, logits: Tensor, loaded: LoadedImages | FeatureFile, nearest: Tensor) -> Measured:
    order = [record.index for record in loaded.records if record.index is not None]
    heads = fitted.model.zero_shot_heads["templates"].cpu()
    return measure(logits, fitted.zero_shot_logits, fitted.described_logits, fitted.looks, heads, loaded.store.ids, order, nearest)


def _report(run: RunFolder, model: Model, loaded: LoadedImages | FeatureFile, console: Console) -> None:
    """The run is finished and saved: whatever goes wrong with its report must not take it back."""
    from finelens.report.thumbnails import from_store, no_photos
    from finelens.report.write import write_report

    try:
        positions = [(record.name, record.index) for record in loaded.records if record.index is not None]
        photos = no_photos if isinstance(loaded, FeatureFile) else from_store(positions, loaded.store)
        console.say(f"wrote {write_report(run, photos, model)}")
    except Exception as error:
        console.warn(f"the report could not be written ({error}); the run itself is complete, finelens report {run.path} tries again")


def versions() -> dict[str, str]:
    """Versions of what the result depends on besides finelens."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "pillow": PIL.__version__}


def _refuse_changes(run: RunFolder, inputs: Inputs) -> None:
    what = {
        "start": f"weights of backbone {run.config.backbone}",
        "images": f"photographs in {run.config.photos}",
        "classes": f"class names, templates or descriptions of {run.path}",
        "hints": f"hints in {run.given_hints_path}",
        "extra": f"features of further encoders in {', '.join(map(str, run.config.method_options.get('extra', [])))}",
        "support": f"images, classes or captions of support set {run.config.method_options.get('support')}",
    }
    logged = {event["event"]: event for event in run.events() if "digest" in event}
    if "start" in logged:
        changes = diff(from_json(logged["start"].get("config"), EVENTS_FILE), run.config)
        if changes:
            raise UserError(f"{run.config_path} has changed since the run was started ({'; '.join(changes)}); restore it, or start a new run")
    for name, digest in inputs.digests.items():
        if name in logged and logged[name]["digest"] != digest:
            raise UserError(f"the {what[name]} have changed since the run was started; start a new run with finelens adapt")


def _log_start(run: RunFolder, inputs: Inputs, counts: dict[str, int]) -> int:
    config, prepared, digests = run.config, inputs.prepared, inputs.digests
    run.log("start", config=to_json(config), digest=digests["start"], versions=versions())
    if inputs.choice is not None:
        run.log("choice", method=config.method, reason=inputs.choice)
    run.log("images", files=len(inputs.loaded.records), counts=counts, digest=digests["images"])
    report = None if prepared.report is None else prepared.report.to_json()
    classes = prepared.classes
    if prepared.support is not None:
        run.log("support", count=len(prepared.support.rows), digest=digests["support"])
    if prepared.extra is not None:
        run.log("extra", encoders=[str(encoder) for encoder in prepared.extra.encoders], digest=digests["extra"])
    if inputs.hints is not None:
        write_text(run.given_hints_path, given_hints(inputs.hints, inputs.loaded.records, classes.names))
        run.log("hints", count=len(inputs.hints.index), digest=digests["hints"])
    return run.log("classes", classes=len(classes), templates=list(classes.templates), descriptions=report, digest=digests["classes"])


def _finish(run: RunFolder, model: Model, rows: list[PredictionRow], console: Console) -> None:
    console.say(balance(rows, model.class_names))
    warning = collapse_warning(rows, model.class_names)
    if warning is not None:
        console.warn(warning)
        run.log("warning", message=warning)
    engine = model.engine
    stages = {name: round(seconds, 3) for name, seconds in engine.stopwatch.seconds.items()}
    spent = ", ".join(f"{name} {duration(seconds)}" for name, seconds in sorted(stages.items(), key=lambda item: -item[1]))
    console.say(f"time: {spent}")
    speed = speed_line(engine)
    if speed is not None:
        console.say(speed)
    console.say(f"wrote {run.predictions_path}")
    spared = {"spared_prefixes": engine.spared_prefixes} if engine.spared_prefixes else {}
    run.log("end", no_grad_forwards=engine.no_grad_forwards, grad_forwards=engine.grad_forwards, **spared, seconds=stages)
