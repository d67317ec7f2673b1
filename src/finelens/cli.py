"""The command ``finelens``: the verbs of ``finelens.commands`` put together, and what becomes of a mistake."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from finelens.bench.command import bench
from finelens.commands.adapt import adapt, resume, zero_shot
from finelens.commands.cache import cache
from finelens.commands.completion import completion
from finelens.commands.demo import demo
from finelens.commands.doctor import doctor
from finelens.commands.evaluate import evaluate
from finelens.commands.features import features
from finelens.commands.lists import backbones, methods
from finelens.commands.new_method import new_method
from finelens.commands.predict import join, predict
from finelens.commands.report import explain, report
from finelens.commands.review import merge_hints, review
from finelens.commands.settings import config
from finelens.commands.write import export, serve, write
from finelens.core.console import EventConsole
from finelens.core.launch import launched
from finelens.core.schemas import VERSION
from finelens.core.voice import INTERRUPTED, MISTAKE
from finelens.errors import UserError

VERBS = (
    *(adapt, zero_shot, resume, predict, join, evaluate, features, report, explain, review, merge_hints, write, export, serve),
    *(backbones, methods, demo, bench, cache, completion, config, doctor, new_method),
)
# Verbs that several processes can share.
SHARED_VERBS = ("adapt", "zero-shot", "resume", "predict")
# Options that say where the answers go: verbs that write a table have the one, verbs that write a folder or page the other.
TARGETS = ("--out", "--csv")
# Seconds that the first process has to say what is wrong with all of them.
FIRST_SPEAKS = 2.0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="finelens")
@click.pass_context
def cli(context: click.Context) -> None:
    """Turn a folder of unlabelled photographs and a list of class names into a better classifier, without labels."""
    if launched()[1] > 1 and context.invoked_subcommand not in SHARED_VERBS:
        raise UserError(f"finelens {context.invoked_subcommand} runs in one process; start it without torchrun (docs/distributed.md)")


for verb in VERBS:
    cli.add_command(verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. A mistake of the user is one line on standard error and exit code 2."""
    try:
        with _terminated_as_interrupted():
            code = cli.main(args=None if arguments is None else list(arguments), prog_name="finelens", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(MISTAKE)
    except click.NoSuchOption as error:
        _refuse(_no_option(error), arguments)
    except click.ClickException as error:
        _refuse(error.format_message(), arguments)
    except UserError as error:
        _fail(error.message)
    except click.Abort:
        click.echo("stopped; the same command begins again", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """What asks a process to end, as schedulers do, is Ctrl-C: nothing is lost, and the last line says how to go on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _refuse(message: str, arguments: Sequence[str] | None) -> None:
    """A mistake in the command line itself, before a verb could speak: another program hears of it as of any other."""
    if "--json" in (sys.argv[1:] if arguments is None else arguments):
        EventConsole().tell("error", text=" ".join(message.split()))
    _fail(message)


def _no_option(error: click.NoSuchOption) -> str:
    """What click says; of an option that in other verbs says where answers go, the one that says it in this verb."""
    taken = {name for option in error.ctx.command.params for name in option.opts} if error.ctx is not None else set()
    own = next((name for name in TARGETS if name in taken), None)
    return error.format_message() if own is None or error.option_name not in TARGETS else f"{error.message} Did you mean {own!r}?"


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
