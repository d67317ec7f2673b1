"""The command ``finelens``: verbs only. Parse, call, print; everything heavy is imported inside the verb that needs it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from finelens.bench.command import bench
from finelens.commands.cache import cache
from finelens.commands.completion import complete_method, completion
from finelens.commands.doctor import doctor
from finelens.commands.new_method import new_method
from finelens.commands.settings import config, config_option, sections_of_file
from finelens.core.console import Console
from finelens.core.launch import launched
from finelens.core.schemas import CHECKPOINT_DIR, CONFIG_FILE, REPORT_FILE, VERDICTS, VERSION
from finelens.core.voice import INTERRUPTED, JUDGED, MISTAKE, speak, voice, voice_of_run
from finelens.errors import Interrupted, UserError
from finelens.methods import auto
from finelens.methods.registry import DEFAULT_METHOD, all_methods

if TYPE_CHECKING:
    from finelens.runs.execute import RunResult
    from finelens.runs.plan import Plan

F = TypeVar("F", bound=Callable[..., Any])
# What --json of evaluate is without a file: standard output.
_EVENTS = "-"
# What --csv is where no file is named.
_QUESTIONS = "-"
# Verbs that several processes can share.
SHARED_VERBS = ("adapt", "zero-shot", "resume", "predict")
# Seconds that the first process has to say what is wrong with all of them.
FIRST_SPEAKS = 2.0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="finelens")
@click.pass_context
def cli(context: click.Context) -> None:
    """Turn a folder of unlabelled photographs and a list of class names into a better classifier, without labels."""
    if launched()[1] > 1 and context.invoked_subcommand not in SHARED_VERBS:
        raise UserError(f"finelens {context.invoked_subcommand} runs in one process; start it without torchrun (docs/distributed.md)")


BACKBONES = "embedded, open_clip:NAME/TAG, hf-hub:ORG/REPO, local:DIR or transformers:DIR_OR_ORG/REPO."
_row_names = click.option("--row-names", type=click.Path(path_type=Path), help="Text file, a name for each row of a feature file of another origin.")
_engine = click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="ray: on a cluster (docs/engine.md)."
)
_ray_address = click.option("--ray-address", help="Of the cluster, for --engine ray.  [default: RAY_ADDRESS, else this machine alone]")
_in_file = click.option(
    "--in",
    "in_file",
    type=click.Path(path_type=Path),
    help="File of another tool (MegaDetector, Label Studio, ...): what it names of PHOTOS is classified, its boxes as crops.",
)
_box_confidence = click.option("--box-confidence", type=float, help="Boxes of a detector in --in that are less sure are left out.  [default: 0.2]")
_csv_bom = click.option("--csv-bom", is_flag=True, help="Begin CSV files of answers with a byte-order mark, for Excel.")
_extra = click.option(
    "--extra", multiple=True, help="Feature file of a further encoder about the same images, for consensus, joint-gmm, self-adaptive-ot; repeatable."
)
_extra_encoders = click.option(
    "--extra-encoder",
    "extra_encoders",
    multiple=True,
    help="Further encoder by name: timm:NAME[@FILE], transformers:DIR_OR_ORG/REPO (DINOv2, DINOv3) or a form of --backbone; repeatable.",
)
_moved_encoders = click.option(
    "--extra-encoder", "extra_encoders", multiple=True, help="Where the weights of a run's --extra-encoder are now, if they have moved; repeatable."
)
_photos_now = click.option("--photos", type=click.Path(path_type=Path), help="Where the run's photographs are now, if they have moved.")
_group_by = click.option("--group-by", metavar="RULE", help="Answer for photographs that belong together: folder, time:SECONDS or column:FILE.")
_extra_names = click.option("--extra-names", multiple=True, type=click.Path(path_type=Path), help="Row names of an --extra array of another origin.")


_fail_on = click.option(
    "--fail-on",
    type=click.Choice([level.replace(" ", "-") for level in VERDICTS[1:]]),
    help=f"Exit with code {JUDGED} if the verdict is this or a worse one; the order is {', '.join(VERDICTS)}.",
)


def _run_options(command: F) -> F:
    """Options that ``adapt`` and ``zero-shot`` share."""
    options = [
        click.argument("photos", type=click.Path(path_type=Path)),
        click.option(
            "--classes", type=click.Path(path_type=Path), help="File of class names, one a line.  [default: those of --in, or that --hints use]"
        ),
        click.option("--out", type=click.Path(path_type=Path), help="Run folder to write.  [default: a new one with the date, beside PHOTOS]"),
        click.option("--descriptions", type=click.Path(path_type=Path), help="JSON file {class: [sentence, ...]}."),
        click.option("--prototypes", type=click.Path(path_type=Path), help="Class prototypes, .npy or .safetensors, in the place of texts."),
        click.option("--logit-scale", type=float, help="Multiplier of cosines, for features of another origin.  [default: the file's, else 100]"),
        _row_names,
        _in_file,
        _box_confidence,
        _csv_bom,
        click.option("--backbone", help=BACKBONES + " A,B,C: the best by rank without labels.  [default: embedded, or what a feature file says]"),
        click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of all randomness."),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or mps."),
        click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="An option, e.g. training.epochs=3; repeatable."),
        click.option("--strict", is_flag=True, help="Note in its row a photograph that decodes although the image library complained."),
        click.option("--calibration/--no-calibration", default=True, show_default=True, help="Calibrate probabilities without labels."),
        _group_by,
        click.option("--rank-floor", default=0.8, show_default=True, help="How likely the narrowest sure rank is, where --classes has ranks."),
        click.option("--overwrite", is_flag=True, help="Replace an earlier run in --out."),
        click.option("--dry-run", is_flag=True, help="Say what would be done and for how long; do nothing."),
        config_option,
        _fail_on,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@voice_of_run
@_run_options
@click.option(
    "--method",
    default=DEFAULT_METHOD,
    show_default=True,
    shell_complete=complete_method,
    help="See: finelens methods. auto chooses one and says why.",
)
@click.option(
    "--minutes", type=float, help="Time that training may take, for the default method and for --method auto.  [default: none: neither trains]"
)
@click.option("--stage", type=click.Choice(["clip-refine"]), help="What trains the towers before the method starts (docs/stages.md).")
@click.option("--captions", type=click.Path(path_type=Path), help="CSV or JSONL file of image,text for --stage.  [default: made of PHOTOS]")
@click.option("--hints", type=click.Path(path_type=Path), help="CSV file path,label for a few of PHOTOS; few-shot methods need it.")
@_extra
@_extra_names
@_extra_encoders
def adapt(photos: Path, assignments: tuple[str, ...], dry_run: bool, fail_on: str | None, **given: Any) -> None:
    """Adapt to PHOTOS, a folder or a feature file, without labels and write a run folder.

    Sub-folders of PHOTOS are searched; their names are never read as labels.
    """
    options = _checked_options(photos, assignments, given)
    from finelens import api

    if dry_run:
        _tell_plan(given["console"], api.plan(photos, **given, options=options))
        return
    with _graceful_stop(given["out"]) as should_stop:
        result = api.adapt(photos, **given, options=options, should_stop=should_stop)
    _tell_run(given["console"], result)
    _exit_by_verdict(given["out"], fail_on)


@cli.command("zero-shot")
@voice_of_run
@_run_options
@click.option("--method", default="zero-shot", show_default=True, help="zero-shot (templates) or cupl (descriptions).")
def zero_shot(photos: Path, assignments: tuple[str, ...], dry_run: bool, fail_on: str | None, **given: Any) -> None:
    """Classify PHOTOS, a folder or a feature file, with the unadapted model and write a run folder."""
    options = _checked_options(photos, assignments, given)
    from finelens import api

    if dry_run:
        _tell_plan(given["console"], api.plan(photos, **given, options=options, verb="zero-shot"))
        return
    _tell_run(given["console"], api.zero_shot(photos, **given, options=options))
    _exit_by_verdict(given["out"], fail_on)


def _checked_options(photos: Path, assignments: tuple[str, ...], given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of ``--config`` and ``--set``, and ``out`` where it was left to us; what can be refused before a tensor library is imported is."""
    from finelens.runs.arguments import RunArguments
    from finelens.runs.config import parse_assignments
    from finelens.runs.early import check_run

    options = sections_of_file()
    for section, values in parse_assignments(assignments).items():
        options[section] = {**options.get(section, {}), **values}
    left_to_us = given["out"] is None
    if left_to_us:
        given["out"] = _own_folder(photos, overwrite=given["overwrite"])
    asked = {name: value for name, value in given.items() if name not in ("out", "overwrite", "console")}
    check_run(RunArguments(photos=photos, options=options, **asked), given["out"], overwrite=given["overwrite"])
    if left_to_us:
        given["console"].say(f"the run goes to {given['out']}")
    return options


def _own_folder(photos: Path, *, overwrite: bool) -> Path:
    from finelens.runs.place import dated_folder

    if overwrite:
        raise UserError("--overwrite replaces the run in --out: say which")
    if launched()[1] > 1:
        raise UserError("several processes must be told one --out")
    return dated_folder(photos)


def _tell_plan(console: Console, found: Plan) -> None:
    console.answer("\n".join(found.lines()), **asdict(found), seconds=found.seconds)


def _tell_run(console: Console, result: RunResult) -> None:
    """What a finished run is, for another program; a person has read it by now. Of several processes, the first one tells."""
    if launched()[0]:
        return
    report, verdict = result.path / REPORT_FILE, None if result.verdict is None else result.verdict.level
    console.answer("", run=str(result.path), report=str(report) if report.is_file() else None, verdict=verdict, rows=result.files)


@cli.command()
@voice_of_run
@click.argument("run", type=click.Path(path_type=Path))
@_fail_on
def resume(run: Path, fail_on: str | None, console: Console) -> None:
    """Go on with the interrupted run in RUN, with its own configuration."""
    from finelens import api

    with _graceful_stop(run) as should_stop:
        result = api.resume(run, console=console, should_stop=should_stop)
    if result is not None:
        _tell_run(console, result)
    _exit_by_verdict(run, fail_on)


@cli.command()
@voice
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("photos", type=click.Path(path_type=Path))
@click.option("--csv", "csv_file", required=True, type=click.Path(path_type=Path), help="File to write.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or mps.")
@click.option("--strict", is_flag=True, help="Note in its row a photograph that decodes although the image library complained.")
@click.option(
    "--calibrate", type=click.Path(path_type=Path), help="CSV file path,label (paths from --calibrate-photos on): also writes OUT.sets.csv."
)
@click.option("--calibrate-photos", type=click.Path(path_type=Path), help="Folder of the labelled photographs.  [default: PHOTOS]")
@click.option("--coverage", type=float, help="Share of the sets that should hold the true class.  [default: 0.9]")
@click.option("--zero-shot/--no-zero-shot", default=True, show_default=True, help="Fill the column zero_shot_class; without it: half the work.")
@click.option("--classes", type=click.Path(path_type=Path), help="Another list of class names than the run's (docs/new_classes.md).")
@click.option("--descriptions", type=click.Path(path_type=Path), help="JSON file {class: [sentence, ...]} for --classes.  [default: the run's]")
@click.option("--prototypes", type=click.Path(path_type=Path), help="Prototypes for --classes, where the run was made with prototypes.")
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier command; what a stopped one left is gone on with in any case.")
@click.option("--shard", metavar="I/K", help="Part I of K only, into OUT-0000I-of-0000K.csv; finelens join puts the parts together.")
@_group_by
@click.option("--tiles", metavar="GRID", help="Also classify tiles of each photograph: 3, 3x2 or 3x2:0.5 (columns, rows, overlap).")
@click.option("--tile-floor", type=float, help="Least probability with which a tile names its class.  [default: 0.5]")
@_engine
@_ray_address
@_row_names
@_in_file
@_box_confidence
@_csv_bom
@_extra
@_extra_names
@_moved_encoders
def predict(
    run: Path,
    photos: Path,
    csv_file: Path,
    engine: str,
    ray_address: str | None,
    shard: str | None,
    group_by: str | None,
    tiles: str | None,
    csv_bom: bool,
    extra: tuple[str, ...],
    console: Console,
    **given: Any,
) -> None:
    """Classify new PHOTOS with the finished run in RUN.

    PHOTOS is a folder, tar shards, Parquet files with image bytes, an index over zip archives, a feature file, one photograph, a list of paths in a
    .txt or .lst file, or - for such a list on standard input.

    Rows are written as they come. After an interruption the same command goes on where it was.
    """
    from finelens.runs.arguments import Question
    from finelens.runs.early import check_question
    from finelens.runs.shard import Shard

    rank, processes = launched()
    if processes > 1 and shard is not None:
        raise UserError("torchrun shares the photographs among its processes, and --shard does so among machines; use one of them")
    alone = csv_bom or group_by is not None or tiles is not None
    if engine == "ray" and (processes > 1 or shard is not None or alone or str(photos) == "-"):
        raise UserError("--engine ray divides files among its workers itself: leave out torchrun, --shard, --csv-bom, --group-by, --tiles and -")
    _check_engine(engine, ray_address)
    part = Shard.parse(shard) if shard is not None else Shard(rank + 1, processes) if processes > 1 else None
    files = tuple(map(Path, extra))
    question = Question(run=run, photos=photos, csv=csv_file, shard=part, extra=files, group_by=group_by, tiles=tiles, csv_bom=csv_bom, **given)
    check_question(question)
    try:
        if engine == "ray":
            from finelens.runs.on_ray import predict_on_ray

            predict_on_ray(question, console, ray_address)
        else:
            from finelens.runs.to_file import predict_to_file

            predict_to_file(question, console)
    except KeyboardInterrupt:
        if engine == "ray":
            click.echo(f"\nstopped; parts that are whole are in {question.csv}.parts, and the same command goes on from there", err=True)
            sys.exit(INTERRUPTED)
        kept = f"what was answered is in {question.target}.part, and the same command goes on from there"
        click.echo(f"\nstopped; {kept if group_by is None else 'the same command begins anew, as groups need all answers'}", err=True)
        sys.exit(INTERRUPTED)
    if part is None:
        from finelens.runs.to_file import check_any_read

        check_any_read(question.target)
    console.answer("", csv=str(question.target))
    if part is not None and part.number == 1:
        console.say(f"when all {part.count} parts are there: finelens join {Shard.pattern(csv_file, part.count)} --csv {csv_file}")


@cli.command()
@voice
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--csv", "csv_file", required=True, type=click.Path(path_type=Path), help="File to write.")
def join(parts: tuple[Path, ...], csv_file: Path, console: Console) -> None:
    """Put the PARTS that predict --shard wrote together: the bytes of a file that was written without parts."""
    from finelens.runs.shard import join_parts

    console.answer("", csv=str(join_parts(parts, csv_file, console)))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("test", type=click.Path(path_type=Path))
@click.option("--labels", required=True, help="folders (the first sub-folder of TEST names the class), or a CSV file with columns path,label.")
@click.option(
    "--json",
    "json_file",
    is_flag=False,
    flag_value=_EVENTS,
    type=click.Path(path_type=Path),
    help="File to write all measures to; as the last word: everything as JSON on standard output (docs/command.md).",
)
@click.option("--quiet", is_flag=True, help="Say nothing but the measures, warnings and errors.")
@click.option("--groups", type=click.Path(path_type=Path), help="CSV file path,NAME,...: accuracy, gaps and calibration by group, and shortcuts.")
@click.option("--unknown", is_flag=True, help="Labels of no class of the run say 'none of these': judges the column none_of_these.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or mps.")
@_row_names
@_extra
@_extra_names
@_moved_encoders
def evaluate(json_file: Path | None, quiet: bool, **given: Any) -> None:
    """Score the finished run in RUN on the labelled photographs in TEST, a folder or a feature file."""
    told = str(json_file) == _EVENTS
    speak(_evaluate, quiet=quiet, as_events=told, json_file=None if told else json_file, **given)


def _check_engine(engine: str, ray_address: str | None) -> None:
    if ray_address is not None and engine != "ray":
        raise UserError("--ray-address has an effect with --engine ray only")


def _evaluate(run: Path, test: Path, labels: str, console: Console, **given: Any) -> None:
    from finelens.runs.evaluate import evaluate as score
    from finelens.runs.evaluate import summary
    from finelens.runs.judge import contradiction

    found = score(run, test, labels, console=console, **given)
    console.answer(summary(found), measures=found)
    if said := contradiction(run, found):
        console.warn(said)


@cli.command()
@voice
@click.argument("photos", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write, .safetensors; or a folder of shards, .features.")
@click.option("--backbone", default="embedded", show_default=True, help=BACKBONES)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or mps.")
@click.option("--classes", type=click.Path(path_type=Path), help="File of class names, to store their prototypes as well.")
@click.option("--descriptions", type=click.Path(path_type=Path), help="JSON file {class: [sentence, ...]}.")
@click.option("--patches", is_flag=True, help="Store patch tokens as well (large).")
@click.option("--crops", default=0, show_default=True, type=click.IntRange(min=0), help="Random crops of each image to encode and store as well.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the crops.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier feature file.")
@_engine
@_ray_address
def features(photos: Path, engine: str, ray_address: str | None, **given: Any) -> None:
    """Encode PHOTOS once and write a feature file, which the other verbs take in the place of photographs."""
    _check_engine(engine, ray_address)
    if engine == "ray" and (given["patches"] or given["crops"] or str(photos) == "-"):
        raise UserError("--engine ray writes a folder of shards: leave out --patches, --crops and -")
    from finelens.runs.early import check_features

    check_features(photos, **{name: given[name] for name in ("backbone", "device", "classes", "descriptions")})
    try:
        if engine == "ray":
            from finelens.runs.on_ray import FeatureQuestion, features_on_ray

            own = {name: given[name] for name in ("out", "backbone", "device", "classes", "descriptions")}
            features_on_ray(FeatureQuestion(photos, **own), given["console"], ray_address, overwrite=given["overwrite"])
        else:
            from finelens.runs.encode import features as write_features

            write_features(photos, **given)
        given["console"].answer("", out=str(given["out"]))
    except KeyboardInterrupt:
        kept = f"shards that are whole are in {given['out']}" if engine == "ray" else "what was encoded is in the cache"
        click.echo(f"\nstopped; {kept}, and the same command goes on from there", err=True)
        sys.exit(INTERRUPTED)


@cli.command()
@voice
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--labels", help="folders, or a CSV file with columns path,label: adds measured accuracy to the report.")
@click.option("--test", type=click.Path(path_type=Path), help="Folder of the labelled photographs; default: those of the run.")
@click.option("--groups", type=click.Path(path_type=Path), help="CSV file path,NAME,... as for evaluate: adds groups to the report.")
@click.option("--unknown", is_flag=True, help="As for evaluate: labels of no class judge the column none_of_these.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or mps.")
@_extra
@_extra_names
@_moved_encoders
@_photos_now
@click.option("--pdf", is_flag=True, help="Also print it to report.pdf, with a Chromium, Chrome or Edge of this machine.")
@_fail_on
def report(run: Path, fail_on: str | None, pdf: bool, **given: Any) -> None:
    """Write report.html, MODEL_CARD.md and verdict.json of the finished run in RUN again."""
    from finelens import api
    from finelens.reporting.pdf import find_browser, print_pdf
    from finelens.runs.judge import read_level

    # Before the work: without a browser there is nothing to wait for.
    browser = find_browser() if pdf else None
    page = api.report(run, **given)
    printed = None if browser is None else print_pdf(page, page.with_suffix(".pdf"), browser)
    if printed is not None:
        given["console"].say(f"wrote {printed}")
    given["console"].answer("", report=str(page), verdict=read_level(run), pdf=None if printed is None else str(printed))
    _exit_by_verdict(run, fail_on)


@cli.command()
@voice
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="HTML page to write as well.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or mps.")
@_photos_now
@_moved_encoders
def explain(run: Path, image: Path, out: Path | None, console: Console, **given: Any) -> None:
    """Say why the finished run in RUN gives IMAGE its class: texts, where it looked, the nearest photographs."""
    from finelens import api

    found = api.explain(run, image, out, console=console, **given)
    page = None if out is None else str(out)
    console.answer("\n".join(found.lines()), image=str(image), zero_shot=found.zero_shot, sides=[asdict(side) for side in found.sides], out=page)


@cli.command()
@voice
@click.argument("run", metavar="RUN|PHOTOS", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Sheet to write.  [default: RUN/review.html]")
@click.option("--limit", default=200, show_default=True, type=click.IntRange(1, 2000), help="Most photographs on the sheet.")
@click.option("--ask", type=click.IntRange(1, 2000), help="As many photographs, in the order in which answers say most about all others.")
@click.option("--order", type=click.Choice(["worth", "doubt"]), help="doubt: most likely wrong first.  [default: worth with --ask, else doubt]")
@click.option(
    "--csv",
    is_flag=False,
    flag_value=_QUESTIONS,
    type=click.Path(path_type=Path),
    help="File to write the questions of --ask to, to be filled in, instead of a sheet.  [without a name: RUN/questions.csv, for PHOTOS hints.csv]",
)
@click.option(
    "--serve",
    is_flag=True,
    help="Ask on a page of this machine, save every answer at once and show what the model makes of them, instead of writing a file.",
)
@click.option("--hints", type=click.Path(path_type=Path), help="File that --serve writes.  [default: RUN/hints.csv]")
@click.option("--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="Port of --serve; 0 takes a free one.")
@click.option("--backbone", default="embedded", show_default=True, help=f"For PHOTOS without a run: {BACKBONES}")
@_photos_now
def review(
    run: Path,
    out: Path | None,
    limit: int,
    ask: int | None,
    order: str | None,
    csv: Path | None,
    serve: bool,
    hints: Path | None,
    port: int,
    backbone: str,
    photos: Path | None,
    console: Console,
) -> None:
    """Show photographs of the finished run in RUN for a person to look at: those most likely wrong, or with --ask those worth most to name.

    With PHOTOS, a folder or feature file without a class list, --ask N --serve --hints FILE takes the names that the person thinks of, and
    --ask N --csv FILE writes the questions as a file; the answers are the list.
    """
    from finelens import api

    order, limit = order or (api.WORTH if ask else api.DOUBT), ask or limit
    if csv is not None:
        if ask is None or serve or out is not None:
            raise UserError("--csv writes the order of --ask N in the place of a sheet; give --ask, and leave out --serve and --out")
        csv = api.questions_path(run) if str(csv) == _QUESTIONS else csv
        chosen = api.ask(run, ask, csv=csv, order=order, backbone=backbone, photos=photos, console=console)
        console.answer("", csv=str(csv), photographs=len(chosen))
        return
    if not serve:
        console.answer("", sheet=str(api.review(run, out, limit=limit, order=order, photos=photos, console=console)))
        return
    with api.review_server(run, hints, limit=limit, port=port, order=order, backbone=backbone, photos=photos, console=console) as server:
        address, file = server.address, str(server.hints)
        console.answer(f"open {address} in a browser; answers go to {file}; Ctrl-C ends", address=address, hints=file)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            command = server.session.subject.command
            given = f"the answers are used by\n{command}" if Path(file).is_file() else f"nothing was answered, and there is no {file}"
            console.answer(f"\nended; {given}", hints=file, command=command)


@cli.command("merge-hints")
@voice
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Hints file to write; its column by keeps who said what.")
@click.option("--classes", type=click.Path(path_type=Path), help="Class list to write, of the names that the answers use.")
def merge_hints(files: tuple[Path, ...], out: Path, classes: Path | None, console: Console) -> None:
    """Join the answers of several people, hints FILES, into one; shows where they contradict one another, and leaves that out."""
    from finelens.classes.merging import merge_hints as merge

    merge(files, out, classes=classes, console=console)
    console.answer("", out=str(out), classes=None if classes is None else str(classes))


@cli.command()
@voice
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", required=True, metavar="FORM", help="Name of the form; finelens write --list shows all.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New file or folder to write.")
@click.option("--csv", "predictions", type=click.Path(path_type=Path), help="Predictions on new photographs.  [default: those of the run]")
@click.option("--photos", type=click.Path(path_type=Path), help="Folder of the photographs.  [default: the run's]")
@click.option("--in", "in_file", type=click.Path(path_type=Path), help="File that predict --in was given, beside --csv.")
@click.option("--at-least", default=0.0, show_default=True, help="Probability below which an answer of the model is written as none.")
@click.option("--none-apart", is_flag=True, help="Write photographs that probably belong to none of the classes as such, with no class.")
@click.option("--how", type=click.Choice(["copy", "hardlink", "link"]), help="How folders get their photographs.  [default: copy]")
@click.option("--package", type=click.Path(path_type=Path), help="For camtrap-dp: folder of the package that the photographs are of.")
@click.option("--project", help="For wildlife-insights: id of the project.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=lambda *given: _list_forms(*given), help="Show the forms.")
def write(run: Path, to: str, out: Path, console: Console, **given: Any) -> None:
    """Write the answers of the finished run in RUN in the form of another tool: Timelapse, Label Studio, folders by class, ..."""
    from finelens.exchange.forms import write as write_form

    said = write_form(run, to, out, **given)
    console.answer(f"wrote {out}: {said}", out=str(out), form=to, text=said)


def _list_forms(context: click.Context, option: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    from finelens.exchange.forms import FORMS

    width = max(map(len, FORMS))
    for name, form in FORMS.items():
        click.echo(f"{name:<{width}}  {form.summary}")
    context.exit()


@cli.command()
@voice
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Choice(["open_clip", "transformers", "onnx", "torch"]), help="torch: a program of torch.export.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--weights", default="float32", show_default=True, type=click.Choice(["float32", "float16", "int8"]), help="Type of stored weights, for onnx."
)
@click.option("--resize", is_flag=True, help="For onnx: resize and crop inside; one photograph of any size, uint8 (1, 3, H, W), goes in.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in --out.")
@_moved_encoders
def export(run: Path, out: Path, **given: Any) -> None:
    """Write the classifier of the finished run in RUN for another runtime, and compare its answers with the run's."""
    from finelens import api

    found = api.export(run, out, **given)
    given["console"].answer("", out=str(out), form=given["to"], images=found.images, equal=found.equal)


@cli.command()
@voice
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; one that others reach needs a token.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one.")
@click.option("--token-file", type=click.Path(path_type=Path), help="File with the token of requests.  [default: variable FINELENS_TOKEN]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or mps.")
@click.option("--calibrate", type=click.Path(path_type=Path), help="CSV file path,label: answers carry conformal sets.")
@click.option("--calibrate-photos", type=click.Path(path_type=Path), help="Folder of the labelled photographs.  [default: the run's]")
@click.option("--coverage", type=float, help="Share of the sets that should hold the true class.  [default: 0.9]")
@click.option("--max-images", default=32, show_default=True, help="Images of a request.")
@click.option("--max-image-mb", default=20.0, show_default=True, help="Size of an image.")
@click.option("--max-request-mb", default=64.0, show_default=True, help="Size of a request.")
@click.option("--batch", default=16, show_default=True, help="Most images that the model answers at a time.")
@click.option("--wait", default=5.0, show_default=True, help="Milliseconds that a batch waits for further images.")
@click.option("--queue", default=256, show_default=True, help="Images that wait at most; who comes then is told to come back.")
@_moved_encoders
def serve(
    run: Path,
    max_images: int,
    max_image_mb: float,
    max_request_mb: float,
    batch: int,
    wait: float,
    queue: int,
    **given: Any,
) -> None:
    """Answer over HTTP with the finished run in RUN: POST images to /predict (docs/serve.md)."""
    from finelens.serving.server import serve as serve_run
    from finelens.serving.settings import Settings

    serve_run(run, settings=Settings(max_images, max_image_mb, max_request_mb, batch, wait, queue), **given)


@cli.command()
@voice
@click.option("--for", "use", help="natural, satellite, species, medical or languages.  [default: all]")
def backbones(use: str | None, console: Console) -> None:
    """List models to start from: what for, size, licence, published zero-shot accuracy and its source."""
    from finelens.backbones.catalogue import known_backbones, table_lines

    rows = known_backbones(use)
    console.answer("\n".join(table_lines(rows)), backbones=[row.to_json() for row in rows])


@cli.command()
@voice
def methods(console: Console) -> None:
    """List the methods: name, family, one sentence. The default comes first."""
    known = sorted(all_methods(), key=lambda method: method.name != DEFAULT_METHOD)
    lines = [(method.name, method.family, f"Default. {method.summary}" if method.name == DEFAULT_METHOD else method.summary) for method in known]
    lines.insert(1, (auto.AUTO, auto.FAMILY, auto.SUMMARY))
    name_width = max(len(name) for name, _, _ in lines)
    family_width = max(len(family) for _, family, _ in lines)
    text = "\n".join(f"{name:<{name_width}}  {family:<{family_width}}  {summary}" for name, family, summary in lines)
    console.answer(text, methods=[{"name": name, "family": family, "summary": summary} for name, family, summary in lines], default=DEFAULT_METHOD)


@cli.command()
@voice_of_run
@click.option(
    "--out", default="finelens-demo", show_default=True, type=click.Path(path_type=Path), help="Run folder; an earlier demo in it is replaced."
)
@click.option(
    "--dataset", default="embedded", show_default=True, type=click.Choice(["embedded", "pets"]), help="The photographs shipped, or Oxford-IIIT Pets."
)
@click.option(
    "--data-dir", default="finelens-data", show_default=True, type=click.Path(path_type=Path), help="Where --dataset pets is downloaded to."
)
def demo(out: Path, dataset: str, data_dir: Path, console: Console) -> None:
    """Adapt to the photographs that ship with finelens and show how many answers are right before and after."""
    from finelens.demo.run import run_demo

    with _graceful_stop(out) as should_stop:
        said = run_demo(out, dataset, data_dir, should_stop=should_stop, console=console)
    console.answer(said, run=str(out), text=said)


for command in (bench, cache, completion, config, doctor, new_method):
    cli.add_command(command)


@contextmanager
def _graceful_stop(run: Path) -> Iterator[Callable[[], bool]]:
    """Yields ``should_stop`` for the training loop: the first Ctrl-C finishes the step and saves, the second stops at once."""

    asked = False
    training = False
    rank, processes = launched()

    def should_stop() -> bool:
        nonlocal training
        training = True
        return asked

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and processes > 1:
            # A terminal and torchrun both pass a single Ctrl-C on. It is torchrun that loses patience.
            return
        if asked or not training:
            asked = True
            raise KeyboardInterrupt
        asked = True
        if rank == 0:
            again = "; Ctrl-C again stops at once" if processes == 1 else ""
            click.echo(f"\nfinishing this step and saving{again}", err=True)

    # torchrun ends its processes with SIGTERM.
    previous = {number: signal.signal(number, handle) for number in ([signal.SIGINT] if processes == 1 else [signal.SIGINT, signal.SIGTERM])}
    try:
        yield should_stop
    except (Interrupted, KeyboardInterrupt):
        if rank == 0:
            click.echo(_stopped(run), err=True)
        sys.exit(INTERRUPTED)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _exit_by_verdict(run: Path, fail_on: str | None) -> None:
    """Leave with a code of its own where the run's verdict is as bad as the user said, or worse; the other processes of a run do not judge."""
    if fail_on is None or launched()[0]:
        return
    from finelens.runs.judge import read_level

    if VERDICTS.index(read_level(run)) >= VERDICTS.index(fail_on.replace("-", " ")):
        sys.exit(JUDGED)


def _stopped(run: Path) -> str:
    """What is left of a run that was interrupted, and how to go on."""
    if (run / CHECKPOINT_DIR).is_dir() and any((run / CHECKPOINT_DIR).glob("*.safetensors")):
        return f"stopped; finelens resume {run} goes on from the last checkpoint"
    if (run / CONFIG_FILE).is_file():
        return f"stopped before there was a checkpoint; finelens resume {run} starts again, with the photographs that were encoded in the cache"
    return "stopped; nothing was written yet: the same command begins again, with what was encoded in the cache"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. A mistake of the user is one line on standard error and exit code 2."""
    try:
        code = cli.main(args=None if arguments is None else list(arguments), prog_name="finelens", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(MISTAKE)
    except click.ClickException as error:
        _fail(error.format_message())
    except UserError as error:
        _fail(error.message)
    except click.Abort:
        click.echo("stopped", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    try:
        rank, count = launched()
    except UserError:
        rank, count = 0, 1
    name = "finelens"
    if rank:
        # What is wrong everywhere is said once: torchrun ends this process when the first one has gone.
        time.sleep(FIRST_SPEAKS)
        name = f"finelens, process {rank} of {count}"
    click.echo(f"{name}: " + " ".join(message.split()), err=True)
    sys.exit(MISTAKE)
