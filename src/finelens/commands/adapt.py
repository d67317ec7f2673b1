"""``finelens adapt``, ``zero-shot`` and ``resume``: verbs that make a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from finelens.commands.completion import complete_method
from finelens.commands.options import (
    BACKBONES,
    box_confidence_option,
    csv_bom_option,
    device_option,
    extra_encoders_option,
    extra_names_option,
    extra_option,
    fail_on_option,
    group_by_option,
    in_option,
    row_names_option,
    strict_option,
)
from finelens.commands.settings import check_files_of_file, config_option, sections_of_file
from finelens.commands.stops import exit_by_verdict, graceful_stop
from finelens.core.console import Console
from finelens.core.given import PATH
from finelens.core.launch import launched
from finelens.core.schemas import REPORT_FILE
from finelens.core.voice import voice_of_run
from finelens.errors import UserError
from finelens.methods.registry import DEFAULT_METHOD

if TYPE_CHECKING:
    from finelens.runs.execute import RunResult
    from finelens.runs.plan import Plan

F = TypeVar("F", bound=Callable[..., Any])


def _run_options(command: F) -> F:
    """Options that ``adapt`` and ``zero-shot`` share."""
    options = [
        click.argument("photos", type=PATH),
        click.option("--classes", type=PATH, help="File of class names, one a line.  [default: those of --in, or that --hints use]"),
        click.option("--out", type=PATH, help="Run folder to write.  [default: a new one with the date, beside PHOTOS]"),
        click.option("--descriptions", type=PATH, help="JSON file {class: [sentence, ...]}."),
        click.option("--prototypes", type=PATH, help="Class prototypes, .npy or .safetensors, in the place of texts."),
        click.option("--logit-scale", type=float, help="Multiplier of cosines, for features of another origin.  [default: the file's, else 100]"),
        row_names_option,
        in_option,
        box_confidence_option,
        csv_bom_option,
        click.option("--backbone", help=BACKBONES + " A,B,C: the best by rank without labels.  [default: embedded, or what a feature file says]"),
        click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of all randomness."),
        device_option,
        click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="An option, e.g. training.epochs=3; repeatable."),
        strict_option,
        click.option("--calibration/--no-calibration", default=True, show_default=True, help="Calibrate probabilities without labels."),
        group_by_option,
        click.option("--rank-floor", default=0.8, show_default=True, help="How likely the narrowest sure rank is, where --classes has ranks."),
        click.option("--overwrite", is_flag=True, help="Replace an earlier run in --out."),
        click.option("--dry-run", is_flag=True, help="Say what would be done and for how long; do nothing."),
        config_option,
        fail_on_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
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
@click.option("--captions", type=PATH, help="CSV or JSONL file of image,text for --stage.  [default: made of PHOTOS]")
@click.option("--hints", type=PATH, help="CSV file path,label for a few of PHOTOS; few-shot methods need it.")
@extra_option
@extra_names_option
@extra_encoders_option
def adapt(photos: Path, assignments: tuple[str, ...], dry_run: bool, fail_on: str | None, **given: Any) -> None:
    """Adapt to PHOTOS, a folder or a feature file, without labels and write a run folder.

    Sub-folders of PHOTOS are searched; their names are never read as labels.
    """
    given = _checked(photos, assignments, given)
    from finelens import api

    if dry_run:
        _tell_plan(given["console"], api.plan(photos, **given))
        return
    with graceful_stop(given["out"]) as should_stop:
        result = api.adapt(photos, **given, should_stop=should_stop)
    _tell_run(given["console"], result)
    exit_by_verdict(given["out"], fail_on)


@click.command("zero-shot")
@voice_of_run
@_run_options
@click.option("--method", default="zero-shot", show_default=True, help="zero-shot (templates) or cupl (descriptions).")
def zero_shot(photos: Path, assignments: tuple[str, ...], dry_run: bool, fail_on: str | None, **given: Any) -> None:
    """Classify PHOTOS, a folder or a feature file, with the unadapted model and write a run folder."""
    given = _checked(photos, assignments, given)
    from finelens import api

    if dry_run:
        _tell_plan(given["console"], api.plan(photos, **given, verb="zero-shot"))
        return
    _tell_run(given["console"], api.zero_shot(photos, **given))
    exit_by_verdict(given["out"], fail_on)


@click.command()
@voice_of_run
@click.argument("run", type=PATH)
@fail_on_option
def resume(run: Path, fail_on: str | None, console: Console) -> None:
    """Go on with the interrupted run in RUN, with its own configuration."""
    from finelens import api

    with graceful_stop(run) as should_stop:
        result = api.resume(run, console=console, should_stop=should_stop)
    if result is not None:
        _tell_run(console, result)
    exit_by_verdict(run, fail_on)


def _checked(photos: Path, assignments: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    """What the verb is given, with the options of ``--config`` and ``--set``, and with a folder where that was left to us.

    What can be refused before a tensor library is imported is refused here.
    """
    from finelens.runs.arguments import RunArguments
    from finelens.runs.config import parse_assignments
    from finelens.runs.early import check_run

    check_files_of_file()
    options = sections_of_file()
    for section, values in parse_assignments(assignments).items():
        options[section] = {**options.get(section, {}), **values}
    out, overwrite, console = given["out"], given["overwrite"], given["console"]
    place = _own_folder(photos, overwrite=overwrite) if out is None else out
    about_run = {name: value for name, value in given.items() if name not in ("out", "overwrite", "console")}
    check_run(RunArguments(photos=photos, options=options, **about_run), place, overwrite=overwrite)
    if out is None:
        console.say(f"the run goes to {place}")
    return {**given, "out": place, "options": options}


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
