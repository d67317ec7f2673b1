"""``finelens evaluate``: the one verb whose ``--json`` may name a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finelens.commands.options import device_option, extra_names_option, extra_option, moved_encoders_option, row_names_option
from finelens.core.console import Console
from finelens.core.given import PATH, TEXT
from finelens.core.voice import speak

# What --json is without a file: standard output.
_EVENTS = "-"


@click.command()
@click.argument("run", type=PATH)
@click.argument("test", type=PATH)
@click.option(
    "--labels", required=True, type=TEXT, help="folders (the first sub-folder of TEST names the class), or a CSV file with columns path,label."
)
@click.option(
    "--json",
    "json_file",
    is_flag=False,
    flag_value=_EVENTS,
    type=PATH,
    help="File to write all measures to; as the last word: everything as JSON on standard output (docs/command.md).",
)
@click.option("--quiet", is_flag=True, help="Say nothing but the measures, warnings and errors.")
@click.option("--groups", type=PATH, help="CSV file path,NAME,...: accuracy, gaps and calibration by group, and shortcuts.")
@click.option("--unknown", is_flag=True, help="Labels of no class of the run say 'none of these': judges the column none_of_these.")
@device_option
@row_names_option
@extra_option
@extra_names_option
@moved_encoders_option
def evaluate(json_file: Path | None, quiet: bool, **given: Any) -> None:
    """Score the finished run in RUN on the labelled photographs in TEST, a folder or a feature file."""
    told = str(json_file) == _EVENTS
    speak(_evaluate, quiet=quiet, as_events=told, json_file=None if told else json_file, **given)


def _evaluate(run: Path, test: Path, labels: str, console: Console, **given: Any) -> None:
    from finelens.runs.evaluate import evaluate as score
    from finelens.runs.evaluate import summary
    from finelens.runs.judge import contradiction

    found = score(run, test, labels, console=console, **given)
    console.answer(summary(found), measures=found)
    if said := contradiction(run, found):
        console.warn(said)
