"""Runs that are made and gone on with: ``adapt``, ``plan``, ``zero_shot``, ``resume``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finelens.api.reports import report
from finelens.backbones.registry import several
from finelens.core.console import Console, Mute
from finelens.core.launch import launched
from finelens.engine.distributed import Processes
from finelens.engine.distributed import join as join_processes
from finelens.errors import UserError
from finelens.images.decode import ChangedError
from finelens.intake.taken import saved
from finelens.methods.auto import AUTO
from finelens.methods.registry import DEFAULT_METHOD, find_method
from finelens.protocol import Loaded
from finelens.runs.arguments import Assignments, RunArguments, as_path
from finelens.runs.auto import choose
from finelens.runs.choose_backbone import rank_of_run
from finelens.runs.config import RunConfig
from finelens.runs.execute import RunResult, execute, follow
from finelens.runs.folder import RunFolder
from finelens.runs.inputs import read_inputs, warn_of_doubts
from finelens.runs.model import Model
from finelens.runs.plan import Plan, plan_run
from finelens.runs.resolve import resolve, taken_from


def adapt(
    photos: str | Path,
    classes: str | Path | None,
    out: str | Path,
    *,
    descriptions: str | Path | None = None,
    hints: str | Path | None = None,
    in_file: str | Path | None = None,
    box_confidence: float | None = None,
    csv_bom: bool = False,
    rank_floor: float = 0.8,
    group_by: str | None = None,
    strict: bool = False,
    prototypes: str | Path | None = None,
    row_names: str | Path | None = None,
    extra: Sequence[str | Path] = (),
    extra_names: Sequence[str | Path] = (),
    extra_encoders: Sequence[str] = (),
    logit_scale: float | None = None,
    backbone: str | None = None,
    method: str = DEFAULT_METHOD,
    stage: str | None = None,
    captions: str | Path | None = None,
    minutes: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    options: Assignments | None = None,
    calibration: bool = True,
    overwrite: bool = False,
    console: Console | None = None,
    should_stop: Callable[[], bool] | None = None,
    verb: str = "adapt",
    labels_follow: bool = False,
) -> RunResult:
    """Adapt a model to a folder of unlabelled photographs and write a run folder.

    Args:
        photos: Folder of photographs; sub-folders are searched, their names are never read as labels. Or a feature file, see docs/features.md.
        classes: File of class names, or a table of them with ranks (docs/taxonomy.md); None takes those of ``in_file``, or the names that the hints
            use.
        out: The run folder: new, empty, or an earlier run with ``overwrite``.
        descriptions: JSON file {class: [sentence, ...]}; templates stand in without it.
        hints: CSV file with the columns ``path`` (relative to ``photos``) and ``label`` for a few photographs: what few-shot methods learn from, and
            fixed labels for the others. An empty label says "none of these classes".
        in_file: File of another tool about the photographs (docs/exchange.md): what it names are the rows, boxes in it are classified as crops. Its
            class names stand in for ``classes``, and answers of people in it for ``hints``, where these are not given.
        box_confidence: Boxes of a detector that are less sure are left out; by default 0.2.
        csv_bom: Whether ``predictions.csv`` begins with a byte-order mark, for Excel.
        rank_floor: Probability that the narrowest sure rank in ``predictions_ranks.csv`` has at least, above 0.5 (docs/taxonomy.md).
        group_by: Which photographs belong together: ``folder``, ``time:SECONDS`` or ``column:FILE``; writes ``predictions_groups.csv``, see
            docs/together.md.
        strict: Whether photographs that decode although the image library complained get a note in their row.
        prototypes: ``.npy`` or ``.safetensors`` of class prototypes in the place of texts, rows in the order of the classes.
        row_names: Text file of row names for a feature file of another origin.
        extra: Feature files of further encoders about the same images, matched by content or name, for methods that need ``extra`` (``consensus``
            among them): the same as their option ``method.extra``, see docs/features.md. ``cls`` stands for the model's own pooled token.
        extra_names: Text files of row names for those of another origin: one for all, or one each.
        extra_encoders: Further encoders by name, after ``extra``: ``timm:NAME``, ``timm:NAME@FILE``, DINOv2 or DINOv3 as
            ``transformers:DIR_OR_ORG/REPO``, or any form of ``backbone``. They encode the photographs like the run's own model, and new ones when the
            run predicts.
        logit_scale: Multiplier of cosines for features of another origin; by default what a file says, else 100.
        backbone: ``embedded``, ``open_clip:NAME/TAG``, ``hf-hub:ORG/REPO``, ``local:DIR`` or ``transformers:DIR_OR_ORG/REPO``; by default
            ``embedded``, or what the feature file says. Several, ``A,B,C``, are ranked on the photographs without labels, and the best is taken.
        method: Name of the method, see ``finelens methods``; ``auto`` chooses one and says why (docs/auto.md).
        stage: What comes before the method: ``clip-refine`` trains both towers on pairs of an image and a text (docs/stages.md).
        captions: CSV or JSON Lines file of such pairs; by default they are made of the photographs and the class texts.
        minutes: Time that training may take: the answer of ``consensus`` then teaches the tower (docs/methods/consensus-tuned.md), and ``auto`` may
            choose a method that trains. Without it neither trains.
        seed: Seed of all randomness.
        device: ``cpu``, ``cuda`` or ``mps``.
        options: Values by section and key, e.g. ``{"training": {"epochs": 3}}``.
        calibration: Whether the probabilities are calibrated without labels, see docs/calibration.md; no answer depends on it.
        overwrite: Whether an earlier run in ``out`` is replaced.
        console: What is said on the way; by default lines and bars on standard error.
        should_stop: Asked after each training step; True saves and raises :class:`~finelens.errors.Interrupted`.
        verb: Recorded in the configuration.
        labels_follow: Whether :func:`evaluate` and :func:`report` are called next: they say the verdict then, and this says none.

    Raises:
        UserError: Input that cannot be used; the message names it and the remedy.
    """
    processes = join_processes(device)
    console = _voice(processes, console)
    asked = RunArguments(
        photos=Path(photos),
        classes=as_path(classes),
        verb=verb,
        descriptions=as_path(descriptions),
        hints=as_path(hints),
        in_file=as_path(in_file),
        box_confidence=box_confidence,
        csv_bom=csv_bom,
        rank_floor=rank_floor,
        group_by=group_by,
        strict=strict,
        prototypes=as_path(prototypes),
        row_names=as_path(row_names),
        extra=extra,
        extra_names=extra_names,
        extra_encoders=extra_encoders,
        logit_scale=logit_scale,
        backbone=backbone,
        method=method,
        stage=stage,
        captions=captions,
        minutes=minutes,
        seed=seed,
        device=device,
        options=options,
        calibration=calibration,
    )
    config, taken = resolve(asked)
    # Whatever can be refused is refused before the folder is made or an earlier run in it is removed.
    if processes.first:
        RunFolder.check(out, config, overwrite=overwrite)
    for remark in () if taken is None else taken.remarks:
        console.say(remark)
    warn_of_doubts(config, console, taken)
    candidates = [] if backbone is None else several(backbone)
    ranked = rank_of_run(candidates, config, console) if len(candidates) > 1 else None
    if ranked is not None:
        config = replace(config, backbone=ranked.spec)
    undecided = method == AUTO or minutes is not None
    inputs = read_inputs(config, console, processes=processes, taken=taken, choice_follows=undecided)
    inputs = replace(inputs, backbones=None if ranked is None else ranked.to_json())
    config = _pinned(config, inputs.prepared.engine.backbone.name)
    if undecided:
        choice = choose(inputs.prepared, inputs.loaded, config, inputs.hints, minutes, console)
        config, inputs = choice.config, replace(inputs, prepared=choice.prepared, choice=choice.reason)
    if not processes.first:
        return follow(Path(out), config, inputs, should_stop)
    own: dict[str, Any] = {"report": _write_report, "labels_follow": labels_follow}
    try:
        with RunFolder.create(out, config, overwrite=overwrite) as run:
            return execute(run, inputs, console, should_stop, **own)
    except ChangedError as error:
        if processes.count > 1:
            raise
        console.warn(f"{error.name} has changed while it was used; all are read again")
    # What is decoded at once is not looked at again.
    inputs = replace(read_inputs(config, console, taken=taken, choice_follows=True), backbones=inputs.backbones, choice=inputs.choice)
    with RunFolder.create(out, config, overwrite=True) as run:
        return execute(run, inputs, console, should_stop, **own)


def plan(photos: str | Path, classes: str | Path | None, out: str | Path, *, console: Console | None = None, **given: Any) -> Plan:
    """What :func:`adapt` would do with the same arguments, and for how long; nothing is written but texts in the cache.

    Raises:
        UserError: As :func:`adapt`.
    """
    overwrite = given.pop("overwrite", False)
    config, taken = resolve(RunArguments.of(photos=photos, classes=classes, **given))
    RunFolder.check(out, config, overwrite=overwrite)
    return plan_run(config, Path(out), console or Console(), taken)


def zero_shot(photos: str | Path, classes: str | Path, out: str | Path, *, method: str = "zero-shot", **given: Any) -> RunResult:
    """Classify with the unadapted model; arguments as for :func:`adapt`."""
    if method == AUTO or find_method(method).adapts:
        raise UserError(f"method {method} adapts to the images: use finelens adapt --method {method}")
    return adapt(photos, classes, out, method=method, verb="zero-shot", **given)


def resume(run: str | Path, *, console: Console | None = None, should_stop: Callable[[], bool] | None = None) -> RunResult | None:
    """Go on with an interrupted run, with its own configuration.

    Returns:
        The finished run; None where it was finished already; its report is written where a kill had come before it.

    Raises:
        UserError: Not a run, in use, or its images have changed; or it was finished, and what it gave is gone.
    """
    with RunFolder.open(run, lock=launched()[0] == 0) as folder:
        processes = join_processes(folder.config.device)
        console = _voice(processes, console)
        finished = any(event["event"] == "end" for event in folder.events())
        if finished:
            folder.need_answers()
        if finished and (not processes.first or (folder.report_path.is_file() and folder.card_path.is_file())):
            console.say(f"{folder.path} is finished; nothing to resume")
            return None
        if not finished:
            return _go_on(folder, processes, console, should_stop)
    console.say(f"{folder.path} is finished but for its report")
    report(run, device=folder.config.device, console=console)
    return None


def _go_on(folder: RunFolder, processes: Processes, console: Console, should_stop: Callable[[], bool] | None) -> RunResult:
    if not Path(folder.config.photos).exists():
        raise UserError(
            f"the run's photographs are not in {folder.config.photos} any more, and a run goes on where it began: put them back, or make it anew "
            f"with PHOTOS where they are now and the options that finelens config {folder.path} writes"
        )
    choice = next((str(event["reason"]) for event in folder.events() if event["event"] == "choice"), None)
    copy = folder.given_hints_path if folder.given_hints_path.is_file() else None
    backbones = next(({key: event[key] for key in ("reason", "ranked")} for event in folder.events() if event["event"] == "backbones"), None)
    config = folder.config
    # A run that was killed before its rows were kept reads the file of another tool again.
    taken = saved(folder.taken_path) or taken_from(config.in_file, config.photos, config.box_confidence)
    inputs = read_inputs(config, console, copy, processes=processes, taken=taken)
    inputs = replace(inputs, choice=choice, backbones=backbones)
    if not processes.first:
        return follow(folder.path, folder.config, inputs, should_stop, resume=True)
    return execute(folder, inputs, console, should_stop, resume=True, report=_write_report)


def _voice(processes: Processes, console: Console | None) -> Console:
    """Of several processes, the first one speaks."""
    return (console or Console()) if processes.first else Mute()


def _pinned(config: RunConfig, found: str) -> RunConfig:
    """The configuration with a hub model named by the commit that was loaded: what the hub serves tomorrow is another model."""
    return replace(config, backbone=found) if found.startswith(("hf-hub:", "transformers:")) else config


def _write_report(run: RunFolder, model: Model, loaded: Loaded) -> Path:
    from finelens.reporting.write import report_of_run

    return report_of_run(run, model, loaded)
