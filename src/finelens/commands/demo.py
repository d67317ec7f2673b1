"""``finelens demo``."""

from __future__ import annotations

from pathlib import Path

import click

from finelens.commands.stops import graceful_stop
from finelens.core.console import Console
from finelens.core.given import PATH
from finelens.core.voice import voice_of_run


@click.command()
@voice_of_run
@click.option("--out", default="finelens-demo", show_default=True, type=PATH, help="Run folder; an earlier demo in it is replaced.")
@click.option(
    "--dataset", default="embedded", show_default=True, type=click.Choice(["embedded", "pets"]), help="The photographs shipped, or Oxford-IIIT Pets."
)
@click.option("--data-dir", default="finelens-data", show_default=True, type=PATH, help="Where --dataset pets is downloaded to.")
def demo(out: Path, dataset: str, data_dir: Path, console: Console) -> None:
    """Adapt to the photographs that ship with finelens and show how many answers are right before and after."""
    from finelens.demo.run import run_demo

    with graceful_stop(out) as should_stop:
        said = run_demo(out, dataset, data_dir, should_stop=should_stop, console=console)
    console.answer(said, run=str(out), text=said)
