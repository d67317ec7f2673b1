"""``finelens review`` and ``merge-hints``: what people are asked, and what they said."""

from __future__ import annotations

from pathlib import Path

import click

from finelens.commands.options import BACKBONES, photos_now_option
from finelens.core.console import Console
from finelens.core.given import PATH
from finelens.core.voice import voice
from finelens.errors import UserError

# What --csv is where no file is named.
_QUESTIONS = "-"


@click.command()
@voice
@click.argument("run", metavar="RUN|PHOTOS", type=PATH)
@click.option("--out", type=PATH, help="Sheet to write.  [default: RUN/review.html]")
@click.option("--limit", default=200, show_default=True, type=click.IntRange(1, 2000), help="Most photographs on the sheet.")
@click.option("--ask", type=click.IntRange(1, 2000), help="As many photographs, in the order in which answers say most about all others.")
@click.option("--order", type=click.Choice(["worth", "doubt"]), help="doubt: most likely wrong first.  [default: worth with --ask, else doubt]")
@click.option(
    "--csv",
    is_flag=False,
    flag_value=_QUESTIONS,
    type=PATH,
    help="File to write the questions of --ask to, to be filled in, instead of a sheet.  [without a name: RUN/questions.csv, for PHOTOS hints.csv]",
)
@click.option(
    "--serve",
    is_flag=True,
    help="Ask on a page of this machine, save every answer at once and show what the model makes of them, instead of writing a file.",
)
@click.option("--hints", type=PATH, help="File that --serve writes.  [default: RUN/hints.csv]")
@click.option("--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="Port of --serve; 0 takes a free one.")
@click.option("--backbone", default="embedded", show_default=True, help=f"For PHOTOS without a run: {BACKBONES}")
@photos_now_option
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


@click.command("merge-hints")
@voice
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("--out", required=True, type=PATH, help="Hints file to write; its column by keeps who said what.")
@click.option("--classes", type=PATH, help="Class list to write, of the names that the answers use.")
def merge_hints(files: tuple[Path, ...], out: Path, classes: Path | None, console: Console) -> None:
    """Join the answers of several people, hints FILES, into one; shows where they contradict one another, and leaves that out."""
    from finelens.classes.merging import merge_hints as merge

    merge(files, out, classes=classes, console=console)
    console.answer("", out=str(out), classes=None if classes is None else str(classes))
