"""Which photographs to ask about first: those whose answer says most about all others, given the answers that there are."""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from finelens.classes.hints import How, how_given, looks_of_answers
from finelens.classes.labels import NONE_WORDS
from finelens.core.console import Console
from finelens.core.schemas import LABEL_COLUMNS, WHY_COLUMN
from finelens.errors import UserError
from finelens.evaluation.prequential import drawn_places, random_order
from finelens.feature_store.encoder import target_features
from finelens.feature_store.extra import read_extra
from finelens.feature_store.extra_towers import Beside
from finelens.intake.taken import saved
from finelens.methods.parts.extra_views import ExtraConfig
from finelens.protocol import Loaded, TargetFeatures
from finelens.reporting.own_photos import others, warn_of_others
from finelens.reporting.record import RunRecord, read_run
from finelens.reporting.review.answers import earlier_answers, earlier_told, read_answers, told_cells
from finelens.reporting.review.order import Look
from finelens.runs.classifier import Classifier, load_run
from finelens.runs.config import RunConfig
from finelens.runs.folder import RunFolder
from finelens.runs.sources import source_of_run
from finelens.solvers.asking import Asked, ask
from finelens.solvers.columns import centred_views
from finelens.storage.cells import escape_cell, for_spreadsheets
from finelens.storage.predictions import PredictionRow

COLUMNS = (*LABEL_COLUMNS, WHY_COLUMN, "expected")
DRAWN = "drawn at random, for the estimate of accuracy"


def questions(
    looks: Tensor, doubt: Tensor, answered: Tensor, order: Sequence[int], n: int, *, classes: int, asked: int | None = None
) -> tuple[Asked, Tensor]:
    """The n images to ask about: some drawn at random (:func:`~finelens.evaluation.prequential.drawn_places`), the others by what they say of all.

    Args:
        looks: Centred unit features, (N, D).
        doubt: 1 - probability of the answer of the present model, (N,).
        answered: Positions that have an answer, (A,), int64.
        order: The random order of all images, see :func:`~finelens.evaluation.prequential.random_order`.
        n: Questions, at least 1.
        classes: C.
        asked: Looks at which those were named; as many as there are answers where nobody says it.

    Returns:
        The questions, and which of them are drawn, (n',) bool.
    """
    given = set(answered.tolist())
    at_random = torch.tensor(drawn_places(len(given) if asked is None else asked, n))
    fresh = [position for position in order if position not in given][: int(at_random.sum())]
    drawn = Asked(torch.tensor(fresh, dtype=torch.int64), torch.ones(len(fresh), dtype=torch.float64))
    if len(fresh) == n:
        return drawn, torch.ones(n, dtype=torch.bool)
    others = ask(looks, doubt, torch.cat([answered, drawn.rows]), n - len(fresh), classes=classes)
    place = torch.cat([(~at_random).nonzero()[: len(others.rows), 0], at_random.nonzero()[: len(fresh), 0]]).argsort()
    merged = (torch.cat(pair)[place] for pair in zip(vars(others).values(), vars(drawn).values(), strict=True))
    return Asked(*merged), place >= len(others.rows)


def worth_asking(
    folder: RunFolder, n: int, console: Console, *, device: str = "cpu", answers: Container[str] = (), told: Mapping[str, How] | None = None
) -> list[Look]:
    """Photographs of a finished run in the order in which answers say most about the others, at most ``n``.

    Answers that the run was given and those in its ``hints.csv`` count as given. Features come from the cache or the feature file where they can.

    Args:
        folder: The run.
        n: Questions.
        console: Progress.
        device: Where photographs are encoded that the cache does not hold.
        answers: Further photographs that are answered.
        told: How these were answered, as far as that is known.

    Raises:
        UserError: The run is not finished, or its images are gone.
    """
    record = read_run(folder)
    _, features, places = unadapted_features(folder, record, console, device)
    found = [(row, content) for row, content in zip(record.predicted, record.measured.ids, strict=True) if row.path in places]
    if not found:
        raise UserError(f"none of the run's images is in {record.config.photos} any more; say where they are with --photos")
    rows, ids = zip(*found, strict=True)
    looks = centred_looks(features)[[places[row.path] for row in rows]]
    given = {*earlier_answers(record), *read_answers(folder.hints_path)}
    # A copy of an answered photograph is answered.
    contents = {content for row, content in found if row.path in given or row.path in answers}
    answered = torch.tensor([i for i, content in enumerate(ids) if content in contents], dtype=torch.int64)
    doubt = torch.tensor([1 - (row.probability or 0.0) for row in rows])
    how = {**earlier_told(record), **(how_given(folder.hints_path) or {}), **(told or {})}
    asked = len(looks_of_answers([row.path for row in rows if row.path in given or row.path in answers], how))
    return looks_of(rows, looks, doubt, answered, random_order(ids), n, classes=len(record.classes), asked=asked)


def looks_of(
    rows: Sequence[PredictionRow],
    looks: Tensor,
    doubt: Tensor,
    answered: Tensor,
    order: Sequence[int],
    n: int,
    *,
    classes: int,
    asked: int,
) -> list[Look]:
    """The :func:`questions` as rows of predictions with their reasons; arguments as there."""
    found, drawn = questions(looks, doubt, answered, order, n, classes=classes, asked=asked)
    parts = zip(found.rows.tolist(), found.speaks_for.tolist(), drawn.tolist(), strict=True)
    return [Look(rows[i], DRAWN if random else reason(round(size)), size, random) for i, size, random in parts]


def reason(size: int) -> str:
    """What an answer says of others, for the person who looks."""
    return f"speaks for about {size} photographs, none of them answered" if size > 1 else "like no other photograph"


def unadapted_features(folder: RunFolder, record: RunRecord, console: Console, device: str) -> tuple[Classifier, TargetFeatures, dict[str, int]]:
    """The run's classifier, features of its images by the unadapted model, centred on them, and by its further encoders, and the row of each path.

    Photographs that are others than the run saw have no row: nobody is asked about them.

    Raises:
        UserError: The run is not finished, or its images are gone.
    """
    classifier = load_run(folder.path, device=device)
    folder.need_photographs()
    loaded = source_of_run(folder.config, saved(folder.taken_path)).load(classifier.limits, console, seldom=True)
    with classifier.model.unadapted():
        engine = classifier.model.engine
        found = engine.centre(target_features(engine, loaded.store, classifier.limits.short_side, console))
    found = replace(found, extra=_further(folder.config, classifier, loaded, console))
    strangers = others(record, {one.name: one.sample_id for one in loaded.records if one.sample_id is not None})
    warn_of_others(strangers, folder.config.photos, "nobody is asked about them", console)
    return classifier, found, {one.name: one.index for one in loaded.records if one.index is not None and one.name not in strangers}


def _further(config: RunConfig, classifier: Classifier, loaded: Loaded, console: Console) -> tuple[Tensor, ...]:
    """Features (N, D_v) of the run's further encoders; none of them, with a warning, where a file or weights are gone."""
    options = config.method_options
    if not isinstance(options, ExtraConfig):
        return ()
    try:
        # Encoders that were given by name came with the classifier, and are loaded once.
        names = config.row_names_file is not None
        files = read_extra(options.others, options.extra_names, source_named=names) if options.files else classifier.extra
        return () if files is None else files.of(loaded, Beside(classifier.model.engine, classifier.limits.short_side)).features
    except UserError as error:
        console.warn(f"the review goes on without the features of further encoders, which come in with the second round: {error}")
        return ()


def centred_looks(features: TargetFeatures) -> Tensor:
    """Joint-space feature and pooled token of the images, mean taken out, unit rows; (N, E + W) float32 on the host."""
    views = [F.normalize(view.float().cpu(), dim=1) for view in (features.global_, features.cls)]
    # Features of another origin have no pooled token beside them.
    views = views[:1] if torch.equal(*views) else views
    x = torch.cat(views, 1)
    return centred_views(x, x.mean(0), [view.shape[1] for view in views])


def questions_csv(looks: Sequence[Look], answers: Mapping[str, str], told: Mapping[str, How]) -> str:
    """The content of the hints file that ``--csv`` writes: what is answered, then the questions with the class that the run expects.

    Args:
        looks: The questions.
        answers: Class names by path.
        told: How they were given, as far as that is known.
    """
    columns, how = told_cells(answers, told)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, *columns))
    writer.writerows(map(escape_cell, (path, label or NONE_WORDS[0], "answered", "", *how(path))) for path, label in answers.items())
    writer.writerows(map(escape_cell, (look.path, "", look.why, look.expected, *how(look.path))) for look in looks)
    return for_spreadsheets(text.getvalue())
