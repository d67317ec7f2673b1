"""One run, from its configuration to the files in its folder."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from finelens.classes.hints import given_hints, how_given, no_tests
from finelens.core.console import Console, Mute, duration
from finelens.core.options import to_plain
from finelens.core.schemas import CHECKPOINT_DIR, EVENTS_FILE
from finelens.engine.flops import speed_line
from finelens.engine.stopwatch import in_words
from finelens.errors import UserError
from finelens.evaluation.answered import Answered
from finelens.evaluation.collapse import balance, collapse_warning
from finelens.evaluation.layout import lay_out, write_layout
from finelens.evaluation.name_sense import NONSENSE
from finelens.evaluation.none_of_these import share_of_none
from finelens.evaluation.signals import Measured, as_written, content_of, measure, nearest_images, write_measured
from finelens.evaluation.verdict import Verdict
from finelens.feature_store.encoder import FeatureEncoder
from finelens.images.load import say_notes
from finelens.methods.parts.extra_views import ExtraTask
from finelens.methods.parts.views import ViewTask
from finelens.protocol import Loaded
from finelens.runs.alarms import say_none
from finelens.runs.answered import answered
from finelens.runs.arguments import PredictArguments
from finelens.runs.by_rank import RankTable
from finelens.runs.config import RunConfig, diff, from_json, to_json
from finelens.runs.fit import Fitted, fit, run_temperature
from finelens.runs.folder import RunFolder
from finelens.runs.group_by import GroupBy
from finelens.runs.inputs import Inputs, counts_of, further_files, is_part
from finelens.runs.judge import judge, write_verdict
from finelens.runs.model import Model, save_model
from finelens.runs.photo_source import PhotoSource
from finelens.runs.predict import predict_store
from finelens.runs.prepare import Prepared, release_text
from finelens.runs.sources import source_of_run
from finelens.runs.to_file import predict_to_file
from finelens.runs.together import groups_by, together
from finelens.storage.cells import BOM
from finelens.storage.files import write_text
from finelens.storage.predictions import PredictionRow, rows_from_logits, softmax, with_answers, write_predictions
from finelens.training.checkpoint import read_events_offset
from finelens.training.loop import Hooks

# Writes the report of a finished run from its folder, model and inputs; returns where it stands.
Reporter = Callable[[RunFolder, Model, Loaded], Path]


@dataclass(frozen=True)
class RunResult:
    """What a finished run says.

    Attributes:
        path: The run folder.
        rows: The rows of ``predictions.csv``; of very many photographs (docs/scale.md) those of the part that the run's page is about.
        untrained: Why nothing was trained though the method trains (``training.guard``); None where it was.
        verdict: Whether to trust it; None in a process that only helped.
        files: Rows that ``predictions.csv`` has.
    """

    path: Path
    rows: list[PredictionRow] = field(repr=False)
    untrained: str | None = None
    verdict: Verdict | None = None
    files: int = 0


def execute(
    run: RunFolder,
    inputs: Inputs,
    console: Console,
    should_stop: Callable[[], bool] | None = None,
    *,
    resume: bool = False,
    report: Reporter | None = None,
    labels_follow: bool = False,
) -> RunResult:
    """Adapt, predict and write the run's files; of several processes, what the first one does.

    Args:
        run: The folder, locked.
        inputs: What the run reads.
        console: What to say.
        should_stop: Asked after each training step.
        resume: Go on from the checkpoint, if there is one.
        report: Writes the report of the finished run; None writes none.
        labels_follow: Whether the caller measures with labels next: the verdict and the next step are said after that, so that one verdict is read.

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
    counts, part = counts_of(loaded), is_part(loaded)
    if fresh:
        offset = _log_start(run, inputs, counts)
    stop = should_stop or (lambda: False)
    hooks = Hooks(run=run, checkpoints=run.checkpoint_dir, failures=run.failure_dir, events_offset=offset, should_stop=stop)
    fitted, logits, nearest, rows = _answer(run.config, inputs, console, hooks, resume=not fresh)
    if fitted.untrained is not None:
        run.log("guard", reason=fitted.untrained)
    with inputs.prepared.engine.stopwatch("write"):
        measured, answers, judged = _write(run, inputs, fitted, logits, nearest, rows, console)
    if part:
        with inputs.prepared.engine.stopwatch("predict"):
            photos, bom, groups = Path(run.config.photos), run.config.csv_bom, run.config.group_by
            extra, names = (tuple(map(Path, files)) for files in further_files(run.config))
            asked = PredictArguments(
                run=run.path, photos=photos, csv=run.predictions_path, csv_bom=bom, group_by=groups, extra=extra, extra_names=names
            )
            predict_to_file(asked, console, answers=inputs.told, files_said=True)
    run.log("predictions", rows=sum(counts.values()), counts=counts, **({} if answers is None else {"answered": to_plain(answers)}))
    if any(reason.code == "names" for reason in judged.reasons):
        console.warn(f"{NONSENSE}: check their spelling and language, or give --descriptions")
        run.log("warning", message=NONSENSE)
    _finish(run, fitted.model, rows, measured.signals.weak_start, console)
    # The other processes may be gone by now.
    with fitted.model.engine.alone():
        page = _report(report, run, fitted.model, loaded, console)
    if page is not None and not labels_follow:
        console.say(f"wrote {page}")
    if not part:
        say_notes(loaded.records, console)
    if not labels_follow:
        console.say(f"verdict on {run.path}: {judged.line}")
    if page is not None and not labels_follow:
        console.say(f"what to do next, with the commands: open {page} in a browser")
    return RunResult(run.path, rows, fitted.untrained, judged, sum(counts.values()))


def _write(
    run: RunFolder, inputs: Inputs, fitted: Fitted, logits: Tensor, nearest: Tensor, rows: list[PredictionRow], console: Console
) -> tuple[Measured, Answered | None, Verdict]:
    """Write the model, the tables and what is known without labels; that, what a person's answers say, and the verdict."""
    save_model(run.model_dir, fitted.model)
    write_predictions(run.part_path if is_part(inputs.loaded) else run.predictions_path, rows, bom=run.config.csv_bom)
    _write_ranks(run, inputs, logits, rows)
    _write_groups(run, inputs, fitted, logits, rows, console)
    measured = _measure(fitted, logits, inputs.loaded, nearest, rows)
    write_measured(run.signals_path, measured)
    console.say("drawing the map and writing the report")
    _lay_out(run, fitted, inputs.loaded, rows)
    answers = _answered(run, fitted, inputs, console)
    return measured, answers, _judge(run, inputs, fitted, measured, rows, answers)


def _write_ranks(run: RunFolder, inputs: Inputs, logits: Tensor, rows: list[PredictionRow]) -> None:
    """Answers by rank, where the class list was a table with ranks; of a part, ``predict`` writes them for all."""
    if is_part(inputs.loaded) or inputs.taxonomy is None or not inputs.taxonomy.ranks:
        return
    by_rank = RankTable(inputs.taxonomy, run.config.rank_floor)
    text = by_rank.header + by_rank.lines(rows, [record.index for record in inputs.loaded.records], softmax(logits.numpy()))
    write_text(run.ranks_path, (BOM if run.config.csv_bom else "") + text)


def _write_groups(run: RunFolder, inputs: Inputs, fitted: Fitted, logits: Tensor, rows: list[PredictionRow], console: Console) -> None:
    """Answers of groups, where the run was told which photographs belong together; those of very many are written with their predictions."""
    if run.config.group_by is None or is_part(inputs.loaded):
        return
    by = GroupBy.parse(run.config.group_by)
    source = source_of_run(run.config, inputs.taken)
    files = source.files if isinstance(source, PhotoSource) else []
    groups = groups_by(by, [row.path for row in rows], files)
    index = [record.index for record in inputs.loaded.records]
    found = together(rows, groups, index, inputs.prepared.classes.names, softmax(logits.numpy()), fitted.looks.float().numpy())
    write_text(run.groups_path, (BOM if run.config.csv_bom else "") + found.text)
    for line in found.lines:
        console.say(line)


def _judge(run: RunFolder, inputs: Inputs, fitted: Fitted, measured: Measured, rows: list[PredictionRow], answers: Answered | None) -> Verdict:
    prepared, signals = inputs.prepared, measured.signals
    supported = prepared.support is not None
    judged = judge(run.config, signals, rows, prepared.classes.names, untrained=fitted.untrained, supported=supported, answered=answers)
    write_verdict(run.verdict_path, judged, signals)
    return judged


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
    return RunResult(path, rows, fitted.untrained, files=sum(counts_of(inputs.loaded).values()))


def _answer(config: RunConfig, inputs: Inputs, console: Console, hooks: Hooks, *, resume: bool) -> tuple[Fitted, Tensor, Tensor, list[PredictionRow]]:
    """The fitted model, its calibrated logits (N, C), the nearest images (N, K) and a row for every file."""
    prepared, loaded = inputs.prepared, inputs.loaded
    release_text(prepared)
    fitted = fit(prepared, loaded.store, config, console, hooks, hints=inputs.hints, resume=resume)
    logits = predict_store(fitted.model, loaded.store, console, fitted.features, _view_encoder(prepared, fitted.model, loaded, console))["logits"]
    nearest = nearest_images(fitted.looks, len(prepared.classes))
    if config.calibration:
        fitted.model.temperature = run_temperature(fitted, logits, nearest)
        console.detail(f"probabilities: corrected without labels; no answer changes by it (calibration, temperature {fitted.model.temperature:.3g})")
    logits = fitted.model.calibrated(logits)
    first, doubt = fitted.zero_shot_logits.argmax(1).numpy(), fitted.none_of_these.numpy()
    rows = rows_from_logits(loaded.records, prepared.classes.names, logits.numpy(), first, doubt)
    if inputs.hints is not None:
        for contradiction in inputs.copies.contradictions:
            console.warn(f"{contradiction}; each keeps its answer, and further copies have the model's")
        rows = with_answers(rows, inputs.told, inputs.copies.answers)
    return fitted, logits, nearest, rows


def _view_encoder(prepared: Prepared, model: Model, loaded: Loaded, console: Console) -> FeatureEncoder | None:
    """What keeps the views of a method that looks at many of each picture; None for another."""
    if not isinstance(model.task, ViewTask) or not loaded.pictures:
        return None
    encoder = FeatureEncoder(model.engine, prepared.limits.short_side)
    encoder.say_size(len(loaded.store), model.task.inference.count, console)
    return encoder


def _answered(run: RunFolder, fitted: Fitted, inputs: Inputs, console: Console) -> Answered | None:
    """What the hints say of the run; None without hints."""
    if inputs.hints is None:
        return None
    # The copies of older runs do not say it.
    names = no_tests(run.given_hints_path) or no_tests(Path(str(run.config.hints_file)))
    untested = None if names is None else {record.index for record in inputs.loaded.records if record.index is not None and record.name in names}
    loaded, listed = inputs.loaded, run.config.classes_file is not None
    found = answered(fitted, inputs.hints, loaded.store.ids, untested, listed=listed, copies=inputs.copies)
    console.say(found.line)
    return found


def _measure(fitted: Fitted, logits: Tensor, loaded: Loaded, nearest: Tensor, rows: list[PredictionRow]) -> Measured:
    order = _order(loaded, rows)
    heads = fitted.model.zero_shot_heads["templates"].cpu()
    found = measure(logits, fitted.zero_shot_logits, fitted.described_logits, fitted.looks, heads, loaded.store.ids, order, nearest)
    if any(row.answered for row in rows):
        place = {name: i for i, name in enumerate(fitted.model.class_names)}
        labels = torch.tensor([place[row.label] for row in rows if row.label is not None], dtype=torch.int64)
        found = replace(found, signals=as_written(found.signals, labels))
    task = fitted.model.task
    further = task.listened if isinstance(task, ExtraTask) else 0
    none = share_of_none(fitted.none_of_these)
    return replace(found, signals=replace(found.signals, name_sense=fitted.name_sense, further_encoders=further, none_of_these=none))


def _lay_out(run: RunFolder, fitted: Fitted, loaded: Loaded, rows: list[PredictionRow]) -> None:
    """Places on the map of the report, for the rows that have an answer."""
    with fitted.model.engine.stopwatch("map"):
        found = lay_out(fitted.looks[_order(loaded, rows)])
    if found is not None:
        write_layout(run.map_path, found)


def _order(loaded: Loaded, rows: list[PredictionRow]) -> list[int]:
    """Store positions of the rows that have an answer."""
    pairs = zip(loaded.records, rows, strict=True)
    return [record.index for record, row in pairs if record.index is not None and row.label is not None]


def _report(report: Reporter | None, run: RunFolder, model: Model, loaded: Loaded, console: Console) -> Path | None:
    """Where the report is, if it could be written. The run is finished and saved: whatever goes wrong with its report must not take it back."""
    if report is None:
        return None
    try:
        page = report(run, model, loaded)
    except Exception as error:
        console.warn(f"the report could not be written ({error}); the run itself is complete, finelens report {run.path} tries again")
        return None
    return page


def versions() -> dict[str, str]:
    """Versions of what the result depends on besides finelens."""
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "pillow": PIL.__version__}


def _refuse_changes(run: RunFolder, inputs: Inputs) -> None:
    options = run.config.method_options
    what = {
        "start": f"weights of backbone {run.config.backbone}" + ("" if run.config.stage.name == "none" else " after the stage, or its captions,"),
        "images": f"photographs in {run.config.photos}",
        "classes": f"class names, templates or descriptions of {run.path}",
        "hints": f"hints in {run.given_hints_path}",
        "extra": f"features of further encoders in {', '.join(getattr(options, 'extra', ()))}",
        "support": f"images, classes or captions of support set {getattr(options, 'support', None)}",
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
    if inputs.backbones is not None:
        run.log("backbones", **inputs.backbones)
    if inputs.choice is not None:
        run.log("choice", method=config.method, reason=inputs.choice)
    if prepared.stage is not None:
        run.log("stage", **prepared.stage)
    run.log("images", files=sum(counts.values()), counts=counts, digest=digests["images"])
    report = None if prepared.report is None else prepared.report.to_json()
    classes = prepared.classes
    if prepared.support is not None:
        run.log("support", count=len(prepared.support.rows), digest=digests["support"])
    if prepared.extra is not None:
        run.log("extra", encoders=[str(encoder) for encoder in prepared.extra.encoders], digest=digests["extra"])
    if inputs.taken is not None:
        inputs.taken.save(run.taken_path)
    if inputs.taxonomy is not None:
        inputs.taxonomy.save(run.taxonomy_path)
    if inputs.hints is not None:
        # A run that goes on has its copy.
        told = how_given(run.given_hints_path) or how_given(Path(str(run.config.hints_file)))
        write_text(run.given_hints_path, given_hints(inputs.hints, inputs.loaded.records, classes.names, told))
        contents = sorted({content_of(inputs.loaded.store.ids[i]) for i in inputs.hints.index.tolist()})
        run.log("hints", count=len(inputs.hints.index), digest=digests["hints"], contents=contents)
    return run.log("classes", classes=len(classes), templates=list(classes.templates), descriptions=report, digest=digests["classes"])


def _finish(run: RunFolder, model: Model, rows: list[PredictionRow], hardly: bool, console: Console) -> None:
    console.say(balance(rows, model.class_names))
    warning = collapse_warning(rows, model.class_names, trains=model.entry.trains)
    if warning is not None:
        console.warn(warning)
        run.log("warning", message=warning)
    warning = say_none([row.none_of_these for row in rows if row.none_of_these is not None], console, hardly=hardly)
    if warning is not None:
        run.log("warning", message=warning)
    engine = model.engine
    stages = {name: round(seconds, 3) for name, seconds in engine.stopwatch.seconds.items()}
    spent = ", ".join(f"{name} {duration(seconds)}" for name, seconds in sorted(stages.items(), key=lambda item: -item[1]))
    console.detail(f"time by stage: {spent}")
    if (words := in_words(stages, time.perf_counter() - engine.stopwatch.begun)) is not None:
        console.say(f"time: {words}")
    speed = speed_line(engine)
    if speed is not None:
        console.detail(speed)
    console.say(f"wrote {run.predictions_path}")
    spared = {"spared_prefixes": engine.spared_prefixes} if engine.spared_prefixes else {}
    run.log("end", no_grad_forwards=engine.no_grad_forwards, grad_forwards=engine.grad_forwards, **spared, seconds=stages)
