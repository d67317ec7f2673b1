"""``finelens report`` and ``explain``: pages about a finished run and about one answer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from finelens.commands.options import device_option, extra_names_option, extra_option, fail_on_option, moved_encoders_option, photos_now_option
from finelens.commands.stops import exit_by_verdict
from finelens.core.console import Console
from finelens.core.given import PATH, TEXT
from finelens.core.voice import voice


@click.command()
@voice
@click.argument("run", type=PATH)
@click.option("--labels", type=TEXT, help="folders, or a CSV file with columns path,label: adds measured accuracy to the report.")
@click.option("--test", type=PATH, help="Folder of the labelled photographs; default: those of the run.")
@click.option("--groups", type=PATH, help="CSV file path,NAME,... as for evaluate: adds groups to the report.")
@click.option("--unknown", is_flag=True, help="As for evaluate: labels of no class judge the column none_of_these.")
@device_option
@extra_option
@extra_names_option
@moved_encoders_option
@photos_now_option
@click.option("--pdf", is_flag=True, help="Also print it to report.pdf, with a Chromium, Chrome or Edge of this machine.")
@fail_on_option
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
    exit_by_verdict(run, fail_on)


@click.command()
@voice
@click.argument("run", type=PATH)
@click.argument("image", type=PATH)
@click.option("--out", type=PATH, help="HTML page to write as well.")
@device_option
@photos_now_option
@moved_encoders_option
def explain(run: Path, image: Path, out: Path | None, console: Console, **given: Any) -> None:
    """Say why the finished run in RUN gives IMAGE its class: texts, where it looked, the nearest photographs."""
    from finelens import api

    found = api.explain(run, image, out, console=console, **given)
    page = None if out is None else str(out)
    console.answer("\n".join(found.lines()), image=str(image), zero_shot=found.zero_shot, sides=[asdict(side) for side in found.sides], out=page)
