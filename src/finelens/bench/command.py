"""``finelens bench`` on the command line. What is heavy is imported when it is used."""

from __future__ import annotations

import os
from pathlib import Path

import click

from finelens.core.console import Console, EventConsole
from finelens.core.given import PATH, TEXT
from finelens.core.voice import voice
from finelens.errors import UserError

DATA_ROOT = "FINELENS_DATA"


@click.group(invoke_without_command=True)
@voice
@click.option("--data", multiple=True, type=TEXT, metavar="FOLDER|NAME", help="A data set: a folder, or a name under --data-root; repeatable.")
@click.option("--data-root", type=PATH, help=f"Folder of data sets; default ${DATA_ROOT}.")
@click.option("--corrupt", "corruptions", multiple=True, metavar="NAME:LEVEL", help="Corrupt the test photographs, e.g. fog:3; repeatable.")
@click.option("--methods", default="features", show_default=True, help="Names, or all, training, training-free, features (need no pixels).")
@click.option("--protocols", default="inductive", show_default=True, help="Comma-separated, e.g. inductive,transductive,longtail-10,unknown-half.")
@click.option("--seeds", default="0", show_default=True, help="Comma-separated; of the splits and of the methods.")
@click.option("--backbone", default="embedded", show_default=True, help="As for adapt: embedded, open_clip:NAME/TAG, local:DIR, ...")
@click.option(
    "--profile",
    default="full",
    show_default=True,
    type=click.Choice(["small", "medium", "full"]),
    help="small: 300 images, 5 epochs; medium: 500 images; full: all.",
)
@click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="An option; such rows are marked as not the default.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or mps.")
@click.option("--out", type=PATH, help="Results, one JSON line each; what is there is not computed again.")
@click.pass_context
def bench(
    ctx: click.Context,
    data: tuple[str, ...],
    data_root: Path | None,
    corruptions: tuple[str, ...],
    methods: str,
    protocols: str,
    seeds: str,
    backbone: str,
    profile: str,
    assignments: tuple[str, ...],
    device: str,
    out: Path | None,
    console: Console,
) -> None:
    """Compare methods on labelled data sets, by rules that the code keeps.

    A data set is a folder with train/CLASS/* (used without labels) and test/CLASS/*. The command can be stopped and given again, and run in several
    processes with the same --out.
    """
    if ctx.invoked_subcommand is not None:
        if isinstance(console, EventConsole):
            raise UserError(f"--json stands behind the word that it is for: finelens bench {ctx.invoked_subcommand} --json")
        return
    if not data or out is None:
        raise UserError("bench needs --data FOLDER and --out FILE; see finelens bench --help")
    from finelens.bench.rows.matrix import Plan, choose_methods, run
    from finelens.bench.rows.protocols import parse_protocol
    from finelens.bench.rows.results import ResultsFile
    from finelens.bench.sets.corrupted import AT
    from finelens.bench.sets.find import find_data
    from finelens.images.corruptions import parse_corruption
    from finelens.storage.files import check_target

    check_target(out, '{"schema": 1, "data": ')
    root = data_root or (Path(os.environ[DATA_ROOT]) if os.environ.get(DATA_ROOT) else None)
    asked = tuple(parse_protocol(text) for text in _items(protocols, "--protocols"))
    plan = Plan(
        protocols=asked,
        methods=choose_methods(_items(methods, "--methods")),
        seeds=tuple(_seed(text) for text in _items(seeds, "--seeds")),
        backbone=backbone,
        profile=profile,
        assignments=assignments,
        device=device,
        others={protocol.other: find_data(protocol.other, root)[1] for protocol in asked if protocol.other},
    )
    wanted = [f"{text}{AT}{parse_corruption(corruption)}" for text in data for corruption in corruptions] if corruptions else data
    found = [find_data(text, root) for text in wanted]
    busy = run(plan, [read for _, read in found], [name for name, _ in found], ResultsFile(out), console)
    if busy:
        console.say(f"{busy} rows are being computed by another process")
    console.say(f"results are in {out}; finelens bench table {out}")
    console.answer("", results=str(out), busy=busy)


@bench.command()
@voice
@click.argument("results", nargs=-1, required=True, type=PATH)
@click.option("--markdown", is_flag=True, help="Markdown, which is the only form so far and the default.")
@click.option("--measure", show_default="accuracy", help="Any measure of the results, e.g. class_mean_accuracy, ece, gain.")
@click.option("--published", is_flag=True, help="Published numbers on the same data sets under each table, marked comparable or not.")
@click.option("--methods", help="Only these, comma-separated; default all.")
@click.option("--runs", is_flag=True, help="One line a row, with baselines, branches and intervals; takes neither --measure nor --published.")
def table(results: tuple[Path, ...], markdown: bool, measure: str | None, published: bool, methods: str | None, runs: bool, console: Console) -> None:
    """One table per protocol: methods by data sets, means over seeds; or the rows themselves."""
    from finelens.bench.rows.results import only_methods, read_results
    from finelens.bench.tables.table import markdown_runs, markdown_tables

    found = read_results(results)
    if methods is not None:
        found = only_methods(found, _items(methods, "--methods"))
    if runs and (published or measure is not None):
        raise UserError("--runs shows every row as it is; leave out --measure and --published")
    console.answer((markdown_runs(found) if runs else markdown_tables(found, measure or "accuracy", published)).rstrip("\n"))


@bench.command()
@voice
@click.argument("results", nargs=-1, required=True, type=PATH)
@click.option("--html", required=True, type=PATH, help="File to write; it needs nothing else.")
def leaderboard(results: tuple[Path, ...], html: Path, console: Console) -> None:
    """Write RESULTS as one HTML page: tables to sort, intervals, accuracy against cost."""
    from finelens.bench.rows.results import read_results
    from finelens.bench.tables.leaderboard import leaderboard as page
    from finelens.storage.files import HTML_START, check_target, write_text

    check_target(html, HTML_START)
    write_text(html, page(read_results(results)))
    console.say(f"wrote {html}")
    console.answer("", html=str(html))


@bench.command()
@voice
@click.argument("results", nargs=-1, required=True, type=PATH)
def summary(results: tuple[Path, ...], console: Console) -> None:
    """Say what RESULTS say: the best method by mean, by worst case and by cost, and whether the defaults fall below zero-shot."""
    from finelens.bench.rows.results import read_results
    from finelens.bench.tables.summary import summary as text

    console.answer(text(read_results(results)).rstrip("\n"))


@bench.command()
@voice
@click.argument("a")
@click.argument("b")
@click.option("--results", multiple=True, type=PATH, help="Results that hold both methods; repeatable.")
def compare(a: str, b: str, results: tuple[Path, ...], console: Console) -> None:
    """Differences of two methods in --results, or of the same rows in two results files A and B, with paired intervals."""
    from finelens.bench.rows.results import read_results
    from finelens.bench.tables.compare import compare_files, compare_methods

    if results:
        console.answer(compare_methods(read_results(results), a, b).rstrip("\n"))
        return
    for text in (a, b):
        if not Path(text).is_file():
            raise UserError(f"{text} is no results file; to compare two methods add --results FILE")
    console.answer(compare_files(read_results([Path(a)]), read_results([Path(b)])).rstrip("\n"))


def _items(text: str, option: str) -> list[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise UserError(f"{option} is empty; give names with commas between them")
    return list(dict.fromkeys(items))


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"--seeds: {text!r} is not a number from 0")
    return int(text)
