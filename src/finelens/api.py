"""The verbs of finelens from Python. The command line calls exactly these."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelens.backbones.registry import absolute_spec, check_encoder_spec, is_encoder_spec, several
from finelens.core.console import Console, Mute
from finelens.core.launch import launched
from finelens.core.schemas import CONFIG_FILE, OLDER_QUESTIONS
from finelens.engine.distributed import Processes
from finelens.engine.distributed import join as join_processes
from finelens.errors import UserError
from finelens.intake.recognise import CONFIDENCE
from finelens.intake.taken import Taken, saved, take
from finelens.methods.auto import AUTO, starting_method
from finelens.methods.registry import DEFAULT_METHOD, find_method
from finelens.protocol import Loaded
from finelens.runs.auto import choose
from finelens.runs.choose_backbone import rank_of_run
from finelens.runs.classifier import load_run
from finelens.runs.config import RunConfig
from finelens.runs.early import Assignments, Question, check_question, with_stage
from finelens.runs.evaluate import evaluate
from finelens.runs.execute import RunResult, execute, follow
from finelens.runs.folder import RunFolder, refuse_elsewhere
from finelens.runs.group_by import absolute_groups
from finelens.runs.inputs import further_encoders, read_inputs
from finelens.runs.judge import read_level
from finelens.runs.model import Model
from finelens.runs.plan import Plan, plan_run
from finelens.runs.resolve import absolute, make_config, with_extra
from finelens.runs.shard import Shard, join_parts
from finelens.runs.sources import source_at
from finelens.runs.to_file import predict_to_file
from finelens.storage.files import HTML_START, check_target, write_text
from finelens.storage.predictions import PredictionRow, read_predictions

if TYPE_CHECKING:
    from finelens.exporting.check import Difference
    from finelens.reporting.explain import Explanation
    from finelens.reporting.review.order import Look
    from finelens.reporting.review.server import ReviewServer


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
    config, taken = _config(
        photos,
        classes,
        verb=verb,
        descriptions=descriptions,
        hints=hints,
        in_file=in_file,
        box_confidence=box_confidence,
        csv_bom=csv_bom,
        rank_floor=rank_floor,
        group_by=group_by,
        strict=strict,
        prototypes=prototypes,
        row_names=row_names,
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
    # Whatever can be refused is refused before the folder is made or an earlier run in it is removed.
    if processes.first:
        RunFolder.check(out, config, overwrite=overwrite)
    for remark in () if taken is None else taken.remarks:
        console.say(remark)
    candidates = [] if backbone is None else several(backbone)
    ranked = rank_of_run(candidates, config, console) if len(candidates) > 1 else None
    if ranked is not None:
        config = replace(config, backbone=ranked.spec)
    inputs = replace(read_inputs(config, console, processes=processes, taken=taken), backbones=None if ranked is None else ranked.to_json())
    config = _pinned(config, inputs.prepared.engine.backbone.name)
    if method == AUTO or minutes is not None:
        choice = choose(inputs.prepared, inputs.loaded, config, inputs.hints, minutes, console)
        config, inputs = choice.config, replace(inputs, prepared=choice.prepared, choice=choice.reason)
    if not processes.first:
        return follow(Path(out), config, inputs, should_stop)
    with RunFolder.create(out, config, overwrite=overwrite) as run:
        return execute(run, inputs, console, should_stop, report=_write_report, labels_follow=labels_follow)


def plan(photos: str | Path, classes: str | Path | None, out: str | Path, *, console: Console | None = None, **given: Any) -> Plan:
    """What :func:`adapt` would do with the same arguments, and for how long; nothing is written but texts in the cache.

    Raises:
        UserError: As :func:`adapt`.
    """
    overwrite = given.pop("overwrite", False)
    config, taken = _config(photos, classes, **given)
    RunFolder.check(out, config, overwrite=overwrite)
    return plan_run(config, Path(out), console or Console(), taken)


def _config(
    photos: str | Path,
    classes: str | Path | None,
    *,
    verb: str = "adapt",
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
) -> tuple[RunConfig, Taken | None]:
    """The configuration of a run, from the arguments of :func:`adapt`, and what it takes from a file of another tool."""
    taken = _taken(in_file, photos, box_confidence)
    if taken is not None:
        classes, hints = classes or (in_file if taken.classes else None), hints or (in_file if taken.hints else None)
    if classes is None and hints is None:
        raise UserError("there is no class list: give --classes FILE, or --hints FILE whose names are the list")
    for spec in extra_encoders:
        check_encoder_spec(spec)
    source = source_at(photos, strict=strict, row_names=row_names, logit_scale=logit_scale)
    candidates = [] if backbone is None else several(backbone)
    options = with_stage(options or {}, stage, captions)
    options = with_extra(method, options, (*extra, *extra_encoders), extra_names)
    config = make_config(
        verb,
        absolute(photos),
        starting_method(method, options, minutes),
        options,
        classes_file=None if classes is None else absolute(classes),
        descriptions_file=None if descriptions is None else absolute(descriptions),
        hints_file=None if hints is None else absolute(hints),
        in_file=None if in_file is None else absolute(in_file),
        box_confidence=box_confidence,
        csv_bom=csv_bom,
        rank_floor=rank_floor,
        group_by=None if group_by is None else absolute_groups(group_by),
        strict=strict,
        calibration=calibration,
        prototypes_file=None if prototypes is None else absolute(prototypes),
        row_names_file=None if row_names is None else absolute(row_names),
        logit_scale=logit_scale,
        backbone=absolute_spec(source.backbone(candidates[0] if candidates else None, prototypes)),
        seed=seed,
        device=device,
    )
    return config, taken


def _taken(in_file: str | Path | None, photos: str | Path, box_confidence: float | None) -> Taken | None:
    """What a file of another tool says about a folder; None without one."""
    if in_file is None:
        if box_confidence is not None:
            raise UserError("--box-confidence is about the boxes of --in FILE; give that file, or leave it out")
        return None
    return take(Path(in_file), Path(photos), CONFIDENCE if box_confidence is None else box_confidence)


def _taken_of(folder: RunFolder) -> Taken | None:
    """The rows that a run was started with; those of its file of another tool where it was killed before they were kept."""
    config = folder.config
    return saved(folder.taken_path) or _taken(config.in_file, config.photos, config.box_confidence)


def _voice(processes: Processes, console: Console | None) -> Console:
    """Of several processes, the first one speaks."""
    return (console or Console()) if processes.first else Mute()


def _pinned(config: RunConfig, found: str) -> RunConfig:
    """The configuration with a hub model named by the commit that was loaded: what the hub serves tomorrow is another model."""
    return replace(config, backbone=found) if found.startswith(("hf-hub:", "transformers:")) else config


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
        UserError: Not a run, in use, or its images have changed.
    """
    with RunFolder.open(run, lock=launched()[0] == 0) as folder:
        processes = join_processes(folder.config.device)
        console = _voice(processes, console)
        finished = any(event["event"] == "end" for event in folder.events())
        if finished and (not processes.first or (folder.report_path.is_file() and folder.card_path.is_file())):
            console.say(f"{folder.path} is finished; nothing to resume")
            return None
        if not finished:
            return _go_on(folder, processes, console, should_stop)
    console.say(f"{folder.path} is finished but for its report")
    report(run, device=folder.config.device, console=console)
    return None


def _go_on(folder: RunFolder, processes: Processes, console: Console, should_stop: Callable[[], bool] | None) -> RunResult:
    choice = next((str(event["reason"]) for event in folder.events() if event["event"] == "choice"), None)
    copy = folder.given_hints_path if folder.given_hints_path.is_file() else None
    backbones = next(({key: event[key] for key in ("reason", "ranked")} for event in folder.events() if event["event"] == "backbones"), None)
    inputs = read_inputs(folder.config, console, copy, processes=processes, taken=_taken_of(folder))
    inputs = replace(inputs, choice=choice, backbones=backbones)
    if not processes.first:
        return follow(folder.path, folder.config, inputs, should_stop, resume=True)
    return execute(folder, inputs, console, should_stop, resume=True, report=_write_report)


def _write_report(run: RunFolder, model: Model, loaded: Loaded) -> Path:
    from finelens.reporting.write import report_of_run

    return report_of_run(run, model, loaded)


def predict(run: str | Path, photos: str | Path, csv: str | Path, **given: Any) -> list[PredictionRow]:
    """As :func:`predict_to`, with all rows in memory in the end."""
    return read_predictions(predict_to(run, photos, csv, **given))


def predict_to(
    run: str | Path,
    photos: str | Path,
    csv: str | Path,
    *,
    device: str = "cpu",
    strict: bool = False,
    row_names: str | Path | None = None,
    in_file: str | Path | None = None,
    box_confidence: float | None = None,
    csv_bom: bool = False,
    extra: Sequence[str | Path] = (),
    extra_names: Sequence[str | Path] = (),
    extra_encoders: Sequence[str] = (),
    calibrate: str | Path | None = None,
    calibrate_photos: str | Path | None = None,
    coverage: float | None = None,
    zero_shot: bool = True,
    shard: str | None = None,
    classes: str | Path | None = None,
    descriptions: str | Path | None = None,
    prototypes: str | Path | None = None,
    group_by: str | None = None,
    tiles: str | None = None,
    tile_floor: float | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Path:
    """Classify new photographs, or the rows of a feature file, and write a CSV file with the columns of ``predictions.csv``.

    Rows are written as they come, to ``CSV.part`` until all are there. After an interruption the same call goes on where it was, and ends with the
    same bytes.

    Args:
        run: The run folder.
        photos: Folder of photographs, tar shards, Parquet files with image bytes, a feature file, one photograph, a list of paths (``.txt``,
            ``.lst``), or ``-`` for a list on standard input.
        csv: File to write.
        device: Where to run it.
        strict: As in :func:`adapt`.
        row_names: As in :func:`adapt`.
        in_file: As in :func:`adapt`: what it names of ``photos`` is classified, its boxes as crops.
        box_confidence: As in :func:`adapt`.
        csv_bom: Whether the files begin with a byte-order mark, for Excel.
        extra: Feature files of the further encoders that the run was made with, in that order, about these images; see docs/features.md.
        extra_names: Text files of row names for those of another origin: one for all, or one each.
        extra_encoders: Where the weights of encoders that were given by name are now, if they have moved; in their order.
        calibrate: CSV file with the columns ``path``, relative to ``calibrate_photos``, and ``label`` of some photographs; writes conformal sets too,
            see docs/calibration.md.
        calibrate_photos: Folder of those photographs; by default ``photos``.
        coverage: Share of the sets that should hold the true class; by default 0.9.
        zero_shot: Whether the unadapted model is asked as well; without it the column ``zero_shot_class`` is empty, and a trained method takes half
            the time.
        shard: ``I/K`` writes part I of K only, into ``CSV-0000I-of-0000K.csv``; see :func:`join`.
        classes: File of another list of class names than the run's; what becomes of new ones is on the page docs/new_classes.md.
        descriptions: JSON file of sentences about them; by default the run's.
        prototypes: Their prototypes, where the run was made with prototypes.
        group_by: As in :func:`adapt`; writes ``CSV`` with ``_groups`` in its name. Answers of all stay in memory then, and a call that was stopped
            begins anew.
        tiles: Grid of tiles into which each photograph is cut, ``3``, ``3x2`` or ``3x2:0.5`` (docs/tiles.md): a row a tile, and ``CSV`` with
            ``_tiles`` in its name, the classes that each photograph shows.
        tile_floor: Least probability with which a tile names its class; by default 0.5.
        overwrite: Whether files of an earlier call are replaced; what a stopped one left is gone on with in any case.
        console: Progress.

    Returns:
        The file that was written.

    Raises:
        UserError: Input that cannot be used.
    """
    question = Question(
        Path(run),
        Path(photos),
        Path(csv),
        device,
        strict,
        None if row_names is None else Path(row_names),
        tuple(map(Path, extra)),
        tuple(map(Path, extra_names)),
        None if calibrate is None else Path(calibrate),
        None if calibrate_photos is None else Path(calibrate_photos),
        coverage,
        zero_shot,
        None if shard is None else Shard.parse(shard),
        None if in_file is None else Path(in_file),
        box_confidence,
        csv_bom,
        tuple(extra_encoders),
        None if classes is None else Path(classes),
        None if descriptions is None else Path(descriptions),
        None if prototypes is None else Path(prototypes),
        group_by=group_by,
        tiles=tiles,
        tile_floor=tile_floor,
        overwrite=overwrite,
    )
    check_question(question)
    return predict_to_file(question, console or Console())


def join(parts: Sequence[str | Path], csv: str | Path, *, console: Console | None = None) -> Path:
    """Put the parts that ``predict(..., shard="I/K")`` wrote together: the file has the bytes of one that was written without parts.

    Args:
        parts: All of them, in any order.
        csv: File to write; ``.sets.csv`` beside the parts is joined beside it.
        console: What is said.

    Raises:
        UserError: A part is missing, or a file is none.
    """
    return join_parts([Path(part) for part in parts], Path(csv), console or Console())


def report(
    run: str | Path,
    *,
    labels: str | Path | None = None,
    test: str | Path | None = None,
    groups: str | Path | None = None,
    unknown: bool = False,
    device: str = "cpu",
    extra: Sequence[str | Path] = (),
    extra_names: Sequence[str | Path] = (),
    extra_encoders: Sequence[str] = (),
    photos: str | Path | None = None,
    console: Console | None = None,
) -> Path:
    """Write the report and the model card of a finished run again, with labels where there are some.

    Args:
        run: The run folder.
        labels: ``folders`` or a CSV file, as for :func:`evaluate`; the result is kept in the run as ``evaluation.json``.
        test: Folder of labelled photographs; by default those the run was adapted to.
        groups: As for :func:`evaluate`.
        unknown: As for :func:`evaluate`.
        device: Where the model runs.
        extra: As for :func:`predict`, about ``test``; without ``test`` the run's own.
        extra_names: As for :func:`predict`.
        extra_encoders: As for :func:`predict`.
        photos: Where the run's photographs are now, if they have moved.
        console: Progress.

    Returns:
        Path of ``report.html``.

    Raises:
        UserError: Not a finished run, labels that cannot be matched, or a file that cannot be written.
    """
    from finelens.reporting.record import read_run
    from finelens.reporting.thumbnails import from_run
    from finelens.reporting.write import write_report

    console = console or Console()
    with RunFolder.open(run, photos=photos) as folder:
        if test is not None and labels is None:
            raise UserError("--test needs --labels: folders, or a CSV file with the columns path,label")
        if groups is not None and labels is None:
            raise UserError("--groups needs --labels: accuracy by group is measured with labels")
        if unknown and labels is None:
            raise UserError("--unknown needs --labels: they say which photographs belong to none of the classes")
        if labels is not None:
            elsewhere: dict[str, Any] = {"extra": extra, "extra_names": extra_names}
            given = elsewhere if test is not None else own_features(folder.config) | {"taken": saved(folder.taken_path)}
            given["extra_encoders"] = extra_encoders
            given |= {"device": device, "json_file": folder.evaluation_path, "groups": groups, "unknown": unknown, "console": console}
            evaluate(run, test or folder.config.photos, labels, **given)
        classifier = load_run(run, device=device)
        before = read_level(folder.path) if labels is not None and folder.verdict_path.is_file() else None
        path = write_report(folder, from_run(folder.path, folder.config.photos, classifier.limits), classifier.model)
        judged = read_run(folder).verdict
        folder.say_gone(console)
    console.say(f"wrote {path}")
    if before is not None and before != judged.level:
        console.say(f"the verdict on {run} was: {before}; it is replaced, because labels decide now")
    console.say(f"verdict on {run}: {judged.line}")
    return path


def own_features(config: RunConfig) -> dict[str, Any]:
    """``extra``, ``extra_names`` and ``row_names`` that a run was made with, as :func:`evaluate` takes them."""
    further = further_encoders(config)
    files = [entry for entry in further["entries"] if not is_encoder_spec(entry)]
    return {"extra": files, "extra_names": further["names_files"], "row_names": config.row_names_file}


def export(
    run: str | Path,
    out: str | Path,
    *,
    to: str,
    weights: str = "float32",
    resize: bool = False,
    overwrite: bool = False,
    extra_encoders: Sequence[str] = (),
    console: Console | None = None,
) -> Difference:
    """Write the classifier of a finished run for another runtime, and compare its answers with the run's; see docs/export.md.

    Args:
        run: The run folder.
        out: Folder to write.
        to: ``open_clip`` or ``transformers`` (a folder in the library's own layout), ``onnx`` or ``torch`` (one file).
        weights: Type of the stored weights for ``onnx``: ``float32``, ``float16`` or ``int8``.
        resize: Whether resize and crop are inside, for ``onnx``: the input is then one photograph of any size.
        overwrite: Whether an earlier export in ``out`` is replaced.
        extra_encoders: As for :func:`predict`.
        console: What is said.

    Returns:
        How far its answers are from the run's: ``images``, ``largest`` (of a logit), ``equal`` (classes), and ``files`` of whole photographs.

    Raises:
        UserError: Not a finished run, a method or model that the target cannot hold, or an export whose answers are not the run's.
    """
    from finelens.exporting.write import as_target, as_weights
    from finelens.exporting.write import export as write_export

    target, stored = as_target(to), as_weights(weights)
    return write_export(run, out, to=target, weights=stored, resize=resize, overwrite=overwrite, extra_encoders=extra_encoders, console=console)


def serve(run: str | Path, **given: Any) -> None:
    """Answer over HTTP until SIGTERM or Ctrl-C; arguments are those of :func:`finelens.serving.server.serve`."""
    from finelens.serving.server import serve as serve_run

    serve_run(run, **given)


def explain(
    run: str | Path,
    image: str | Path,
    out: str | Path | None = None,
    *,
    device: str = "cpu",
    extra_encoders: Sequence[str] = (),
    photos: str | Path | None = None,
    console: Console | None = None,
) -> Explanation:
    """Say why a finished run gives one photograph its class, and write a page of it.

    Args:
        run: The run folder.
        image: The photograph; one of the run's or another.
        out: The page; None writes none.
        device: Where the model runs.
        extra_encoders: As for :func:`predict`.
        photos: Where the run's photographs are now, if they have moved.
        console: Progress.

    Raises:
        UserError: The photograph cannot be read, the run is not finished or has no model that could encode it, or the page cannot be written.
    """
    from finelens.reporting.explain import explain_image
    from finelens.reporting.explained import explained_html, photographs

    console = console or Console()
    if out is not None:
        check_target(Path(out), HTML_START)
    folder = RunFolder.open(run, lock=False, photos=photos)
    found = explain_image(folder, load_run(run, device=device, extra_encoders=extra_encoders), Path(image), console)
    if out is not None:
        write_text(Path(out), explained_html(found, folder.path, photographs(folder)))
        console.say(f"wrote {out}")
    return found


# Orders of the review sheet: what an answer says about all others, and how likely the run's own answer is wrong.
WORTH, DOUBT = "worth", "doubt"


def ask(
    images: Any,
    n: int,
    *,
    csv: str | Path | None = None,
    order: str = WORTH,
    backbone: str = "embedded",
    device: str = "cpu",
    photos: str | Path | None = None,
    console: Console | None = None,
) -> list[Look]:
    """The photographs, or feature rows, that a person should name first, at most ``n``: of a finished run, or of images that have no class list yet.

    Args:
        images: A run folder: answers that the run was given, and those in its ``hints.csv``, are taken into account. Or a folder of photographs, a
            feature file, or features (N, D): the person makes the names up.
        n: Questions.
        csv: Hints file to write, to be filled in: for a run with the columns ``path``, ``label`` (empty), ``why`` and ``expected`` (the class that
            the run gives), for other images with ``?`` in the place of each name. Answers in an earlier one are kept and taken into account, and
            those that the run was given or has in its ``hints.csv`` are written too. None writes none.
        order: ``worth``: an answer says most about all other photographs; ``doubt``: the run's own answer is most likely wrong.
        backbone: Encodes photographs without a run, as for :func:`adapt`.
        device: Where photographs are encoded that the cache does not hold.
        photos: Where a run's photographs are now, if they have moved.
        console: Progress.

    Returns:
        Each with ``path``, ``why`` and ``expected``; fewer than ``n`` where no others are left that are not near-copies.

    Raises:
        UserError: Not a finished run, images that cannot be used or are gone, or a file that cannot be written or replaced.
    """
    from finelens.classes.hints import how_given
    from finelens.reporting.record import read_run
    from finelens.reporting.review.answers import earlier_answers, earlier_told, read_answers
    from finelens.reporting.review.sheet import adapt_command
    from finelens.reporting.review.worth import COLUMNS, questions_csv

    console = console or Console()
    if not isinstance(images, (str, Path)) or not (Path(images) / CONFIG_FILE).is_file():
        refuse_elsewhere(photos)
        return _ask_first(images, n, csv, order, backbone, device, console)
    if csv is not None:
        check_target(Path(csv), ",".join(COLUMNS), ",".join(OLDER_QUESTIONS))
    folder, answers, told = RunFolder.open(images, lock=False, photos=photos), {}, {}
    if csv is not None:
        # The file is all that the next round is given: what was answered before has to be in it.
        record = read_run(folder)
        answers = {**earlier_answers(record), **read_answers(folder.hints_path), **read_answers(Path(csv))}
        told = {**earlier_told(record), **(how_given(folder.hints_path) or {}), **(how_given(Path(csv)) or {})}
    chosen = _chosen(folder, n, order, console, device, answers, told)
    if csv is not None:
        write_text(Path(csv), questions_csv(chosen, answers, told))
        console.say(f"wrote {csv} with {len(answers)} answers and {len(chosen)} questions: write names into the column label (none: no class), then")
        console.say(adapt_command(record, str(csv)))
    return chosen


def questions_path(images: str | Path) -> Path:
    """Where the questions of :func:`ask` go if nobody says it: into the run folder; without a run ``hints.csv`` of the working directory."""
    return Path(images) / "questions.csv" if (Path(images) / CONFIG_FILE).is_file() else Path("hints.csv")


def _ask_first(images: Any, n: int, csv: str | Path | None, order: str, backbone: str, device: str, console: Console) -> list[Look]:
    from finelens.classes.hints import how_given
    from finelens.reporting.review import start
    from finelens.reporting.review.answers import read_answers

    if order != WORTH or n < 1:
        raise UserError(f"without a run, ask for at least one photograph in the order {WORTH}; got {n} and {order}")
    if csv is not None:
        check_target(Path(csv), ",".join(start.COLUMNS))
    answers, told = ({}, {}) if csv is None else (read_answers(Path(csv)), how_given(Path(csv)) or {})
    chosen = start.first_questions(images, n, console, answers=answers, told=told, backbone=backbone, device=device)
    if csv is not None:
        write_text(Path(csv), start.open_questions(answers, chosen, told))
        console.say(f"wrote {csv} with {len(answers)} answers and {len(chosen)} questions: write a name in the place of each ?, then")
        console.say(start.adapt_command(str(images), str(csv), backbone))
    return chosen


def _chosen(
    folder: RunFolder,
    n: int,
    order: str,
    console: Console,
    device: str = "cpu",
    answers: Collection[str] = (),
    told: Mapping[str, tuple[str, str]] | None = None,
) -> list[Look]:
    from finelens.reporting.record import read_run
    from finelens.reporting.review.order import looks
    from finelens.reporting.review.worth import worth_asking

    _check_order(order, n)
    if order == WORTH:
        return worth_asking(folder, n, console, device=device, answers=answers, told=told)
    return [look for look in looks(read_run(folder), n + len(answers)) if look.path not in answers][:n]


def _check_order(order: str, n: int) -> None:
    if order not in (WORTH, DOUBT) or n < 1:
        raise UserError(f"ask for at least one photograph, in the order {WORTH} or {DOUBT}; got {n} and {order}")


def review(
    run: str | Path,
    out: str | Path | None = None,
    *,
    limit: int = 200,
    order: str = DOUBT,
    photos: str | Path | None = None,
    console: Console | None = None,
) -> Path:
    """Write the review sheet of a finished run, to be answered by keyboard: by default the photographs most likely to be wrong.

    Args:
        run: The run folder.
        out: The sheet; by default ``review.html`` in the run folder.
        limit: Most photographs on the sheet.
        order: As for :func:`ask`.
        photos: As for :func:`ask`.
        console: What to say.

    Returns:
        Path of the sheet.

    Raises:
        UserError: Not a finished run, or a file that cannot be written or replaced.
    """
    from finelens.reporting.review.sheet import write_sheet

    console = console or Console()
    with RunFolder.open(run, photos=photos) as folder:
        target = folder.review_path if out is None else Path(out)
        check_target(target, HTML_START)
        count = write_sheet(folder, target, limit, _chosen(folder, limit, order, console))
        folder.say_gone(console)
    console.say(f"wrote {target} with {count} photographs; open it in a browser")
    return target


def review_server(
    run: str | Path,
    hints: str | Path | None = None,
    *,
    limit: int = 200,
    port: int = 0,
    order: str = DOUBT,
    backbone: str = "embedded",
    device: str = "cpu",
    photos: str | Path | None = None,
    console: Console | None = None,
) -> ReviewServer:
    """The review as a page on this machine; ``serve_forever`` of the result runs it, and every answer is written at once.

    The page says what the default method believes after the answers so far, and with ``worth`` it goes on asking by that.

    Args:
        run: The run folder; or a folder of photographs or feature file without a class list, for which the person makes up names.
        hints: File to write; by default ``hints.csv`` in the run folder. Answers in it are kept; beside it stands a ``.jsonl`` file of the same name
            with everything that was asked and done.
        limit: Looks that the person wants to take.
        port: 0 takes a free one.
        order: As for :func:`ask`; groups are shown with ``worth`` only.
        backbone: Encodes photographs without a run, as for :func:`adapt`.
        device: As for :func:`ask`.
        photos: As for :func:`ask`.
        console: Progress.

    Raises:
        UserError: Not a finished run, images that cannot be used, a file that is not of hints, or a port in use.
    """
    from finelens.reporting.record import read_run
    from finelens.reporting.review.order import looks
    from finelens.reporting.review.plan import InOrder
    from finelens.reporting.review.server import ReviewServer
    from finelens.reporting.review.subject import subject_of_photos, subject_of_run

    console = console or Console()
    _check_order(order, limit)
    if not (Path(run) / CONFIG_FILE).is_file():
        if order != WORTH or hints is None:
            raise UserError(f"{run} is not the folder of a finelens run; for photographs without a class list give --ask N and --hints FILE")
        refuse_elsewhere(photos)
        target = Path(hints).absolute()
        return ReviewServer(subject_of_photos(Path(run), target, console, backbone=backbone, device=device), target, port, limit)
    folder = RunFolder.open(run, lock=False, photos=photos)
    record, target = read_run(folder), (folder.hints_path if hints is None else Path(hints)).absolute()
    subject = subject_of_run(folder, record, target, console, device=device)
    return ReviewServer(subject, target, port, limit, None if order == WORTH else InOrder(looks(record, limit)))
