"""What a person is asked: ``ask``, ``review``, ``review_server``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelens.core.console import Console
from finelens.core.schemas import CONFIG_FILE, OLDER_QUESTIONS
from finelens.errors import UserError
from finelens.runs.folder import RunFolder, refuse_elsewhere
from finelens.storage.files import HTML_START, check_target, write_text

if TYPE_CHECKING:
    from finelens.classes.hints import How
    from finelens.reporting.review.order import Look
    from finelens.reporting.review.server import ReviewServer


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
    told: Mapping[str, How] | None = None,
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
    # A sheet that goes elsewhere needs no run that can be written to.
    with RunFolder.open(run, lock=out is None, photos=photos) as folder:
        target = folder.review_path if out is None else Path(out)
        check_target(target, HTML_START)
        count = write_sheet(folder, target, limit, _chosen(folder, limit, order, console), console)
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
