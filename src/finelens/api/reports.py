"""Pages about a finished run and about one of its answers: ``report``, ``explain``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelens.backbones.registry import is_encoder_spec
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.intake.taken import saved
from finelens.runs.classifier import load_run
from finelens.runs.config import RunConfig
from finelens.runs.evaluate import evaluate
from finelens.runs.folder import RunFolder
from finelens.runs.inputs import further_encoders
from finelens.runs.judge import read_level
from finelens.storage.files import HTML_START, check_target, write_text

if TYPE_CHECKING:
    from finelens.reporting.explain import Explanation


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
    from finelens.reporting.thumbnails import from_run, no_photos
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
            if test is None:
                folder.need_photographs()
            elsewhere: dict[str, Any] = {"extra": extra, "extra_names": extra_names}
            given = elsewhere if test is not None else _own_features(folder.config) | {"taken": saved(folder.taken_path)}
            given["extra_encoders"] = extra_encoders
            given |= {"device": device, "json_file": folder.evaluation_path, "groups": groups, "unknown": unknown, "console": console}
            evaluate(run, test or folder.config.photos, labels, **given)
        classifier = load_run(run, device=device)
        before = read_level(folder.path) if labels is not None and folder.verdict_path.is_file() else None
        photographs = from_run(folder.path, folder.config.photos, classifier.limits)
        if photos is not None and photographs is no_photos:
            console.warn(f"{photos} holds no photographs, so the page shows none; give their folder with --photos")
        path = write_report(folder, photographs, classifier.model, console=console)
        judged = read_run(folder).verdict
        folder.say_gone(console)
    console.say(f"wrote {path}")
    if before is not None and before != judged.level:
        console.say(f"the verdict on {run} was: {before}; it is replaced, because labels decide now")
    console.say(f"verdict on {run}: {judged.line}")
    return path


def _own_features(config: RunConfig) -> dict[str, Any]:
    """``extra``, ``extra_names`` and ``row_names`` that a run was made with, as :func:`evaluate` takes them."""
    further = further_encoders(config)
    files = [entry for entry in further["entries"] if not is_encoder_spec(entry)]
    return {"extra": files, "extra_names": further["names_files"], "row_names": config.row_names_file}


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
