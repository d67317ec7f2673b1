"""A finished run against labels: the only place where labels meet the code."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from finelens.classes.groups import read_groups
from finelens.classes.labels import LeftOut, UnknownLabelError
from finelens.classes.taxonomy import saved_taxonomy
from finelens.classes.text_files import counted
from finelens.core.console import Console
from finelens.core.options import from_mapping
from finelens.core.schemas import EVALUATION_KEYS
from finelens.errors import UserError
from finelens.evaluation.groups import LEAST, judge_groups
from finelens.evaluation.metrics import accuracy, auroc_fpr95, evaluate_predictions
from finelens.evaluation.none_of_these import probably_none
from finelens.evaluation.signals import read_measured
from finelens.evaluation.trust import Estimates
from finelens.intake.taken import Taken
from finelens.protocol import ImageRecord
from finelens.runs.answered import adapted_to, answered_among
from finelens.runs.by_rank import accuracy_by_rank, say_ranks
from finelens.runs.classifier import Classifier, load_run
from finelens.runs.folder import RunFolder
from finelens.runs.predict import Predictions
from finelens.runs.source import Source
from finelens.runs.sources import source_at, with_rows
from finelens.runs.trust import estimates_of_run
from finelens.storage.files import check_json_target, write_json
from finelens.storage.predictions import softmax

# Label of photographs of no class.
NONE = -1


def evaluate(
    run: str | Path,
    test: str | Path,
    labels: str | Path = "folders",
    *,
    device: str = "cpu",
    json_file: str | Path | None = None,
    unknown: bool = False,
    groups: str | Path | None = None,
    row_names: str | Path | None = None,
    taken: Taken | None = None,
    extra: Sequence[str | Path] = (),
    extra_names: Sequence[str | Path] = (),
    extra_encoders: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Score a finished run on labelled photographs; the only place where labels meet the code.

    Args:
        run: The run folder.
        test: Folder of test photographs, or a feature file of them.
        labels: ``folders`` (the first sub-folder names the class, on the stored paths too) or a CSV file with the columns ``path`` and ``label``.
        device: Where to run it.
        json_file: Where to write the result.
        unknown: Whether labels and folders that name no class, and empty labels, say "none of these": such photographs are held against the column
            ``none_of_these`` and are in no other number.
        groups: CSV file with the column ``path`` and a column for each way to sort the photographs into groups.
        row_names: As in :func:`adapt`.
        taken: Rows of a file of another tool about ``test``, boxes among them; None for its files.
        extra: Feature files of the further encoders that the run was made with, in that order, about these images; see docs/features.md.
        extra_names: Text files of row names for those of another origin: one for all, or one each.
        extra_encoders: Where the weights of encoders that were given by name are now, if they have moved.
        console: Progress.

    Returns:
        What :func:`finelens.evaluation.metrics.evaluate_predictions` returns, ``description_ensemble_accuracy``, the unadapted model with the mean of
        each class's descriptions (None where the run was given none), ``labels_left_out``, labels of files that do not exist and folders of no class,
        ``photographs_left_out`` in such folders or in none, and ``answered_left_out``, photographs that a person answered in the run (``hints``) or
        copies of them, which are in no number; ``adapted_to``, how many of ``n`` the run was adapted to, without labels. With ``unknown``, what
        :func:`judge_unknown` returns under that name. With ``groups``, what :func:`finelens.evaluation.groups.judge_groups` returns, by column.
        ``by_rank`` for a run whose class list has ranks. ``estimates``, what the run would say of these photographs without labels
        (:class:`finelens.evaluation.trust.Estimates`).

    Raises:
        UserError: Labels that cannot be matched, or no labelled image that can be read and was not answered in the run.
    """
    console = console or Console()
    if json_file is not None:
        check_json_target(Path(json_file), EVALUATION_KEYS)
    found_at = source_at(test, row_names=row_names)
    source = found_at if taken is None else with_rows(found_at, taken)
    classifier = load_run(run, device=device, extra=extra, extra_names=extra_names, extra_encoders=extra_encoders, source_named=row_names is not None)
    folder = RunFolder.open(run, lock=False)
    labelled = _ask(source, classifier, folder, labels, test, unknown=unknown, console=console)
    result = _measure(labelled, classifier.classes, folder)
    if unknown:
        strange = np.array([labelled.truth[record.name] == NONE for record in labelled.asked])
        result["unknown"] = judge_unknown(labelled.found.none_of_these.numpy()[_positions(labelled.asked)], strange)
    if groups is not None:
        result["groups"] = _by_group(Path(groups), labelled, classifier.classes, Path(test), console)
    if json_file is not None:
        write_json(Path(json_file), result)
    return result


@dataclass(frozen=True)
class _Labelled:
    """A run's answers about labelled photographs.

    Attributes:
        found: All of them.
        truth: Class of each by its name; ``NONE`` for one of no class.
        left_out: Labels that could not be used, a line each.
        read: How many photographs could be read.
        asked: Those of them that no person answered in the run.
        kept: Those of them that are of a class.
        told: Names of what a person answered, or a copy of it.
        own: How many of those that are kept the run was adapted to.
    """

    found: Predictions
    truth: Mapping[str, int]
    left_out: LeftOut
    read: int
    asked: Sequence[ImageRecord]
    kept: Sequence[ImageRecord]
    told: Collection[str]
    own: int

    @property
    def targets(self) -> np.ndarray:
        """Class of each that is kept, (N,)."""
        return np.array([self.truth[record.name] for record in self.kept])

    @property
    def probabilities(self) -> np.ndarray:
        """Calibrated probabilities of those, (N, C)."""
        return softmax(self.found.logits["logits"].numpy()[_positions(self.kept)])

    @property
    def unadapted(self) -> dict[str, np.ndarray]:
        """Classes that the unadapted model gives them, (N,), by text head."""
        return _classes(self.found.zero_shot, _positions(self.kept))


def _ask(
    source: Source,
    classifier: Classifier,
    folder: RunFolder,
    labels: str | Path,
    test: str | Path,
    *,
    unknown: bool,
    console: Console,
) -> _Labelled:
    """Match labels, ask about what they name, and leave out what the run was told."""
    left_out = LeftOut()
    try:
        truth = source.labels(labels, classifier.classes, left_out, strangers=NONE if unknown else None)
    except UnknownLabelError as error:
        raise UserError(f"{error} (with --unknown such photographs count as of none of the classes)") from error
    for line in left_out.lines("the evaluation"):
        console.warn(line)
    found = source.only(truth).answers(classifier.request(console))
    read = [record for record in found.records if record.index is not None]
    told = answered_among(folder, read, test)
    asked = [record for record in read if record.name not in told]
    kept = [record for record in asked if truth[record.name] != NONE]
    if told and not kept:
        raise UserError(f"{test}: a person answered every labelled image of a class in the run, which knows those answers; give labels of others")
    if not kept:
        raise UserError(f"none of the {len(found.records)} labelled files in {test} is an image of a class that can be read")
    return _Labelled(found, truth, left_out, len(read), asked, kept, told, len(adapted_to(folder, kept)))


def _measure(labelled: _Labelled, classes: Sequence[str], folder: RunFolder) -> dict[str, Any]:
    """Every number about the photographs of a class."""
    targets, probabilities, unadapted = labelled.targets, labelled.probabilities, labelled.unadapted
    first = unadapted["templates"]
    result = evaluate_predictions(
        targets,
        probabilities,
        classes,
        zero_shot=first,
        branches=_classes(labelled.found.logits, _positions(labelled.kept)),
        n_failed=len(labelled.found.records) - labelled.read,
    )
    described = read_measured(folder.signals_path).signals.text_agreement is not None
    result["description_ensemble_accuracy"] = accuracy(targets, unadapted["descriptions"]) if described else None
    result["estimates"] = asdict(estimates_of_run(folder, probabilities.max(1), probabilities.argmax(1), unadapted.values()))
    taxonomy = saved_taxonomy(folder.taxonomy_path)
    if taxonomy is not None:
        result["by_rank"] = accuracy_by_rank(taxonomy, targets, probabilities, first)
    result["labels_left_out"], result["answered_left_out"] = len(labelled.left_out), len(labelled.told)
    result["photographs_left_out"], result["adapted_to"] = sum(labelled.left_out.photographs.values()), labelled.own
    return result


def _by_group(file: Path, labelled: _Labelled, classes: Sequence[str], test: Path, console: Console) -> dict[str, Any]:
    """What :func:`finelens.evaluation.groups.judge_groups` says, by column of the file."""
    names = [record.name for record in labelled.kept]
    columns, others = read_groups(file, [*names, *labelled.told], test)
    if others:
        console.warn(f"{counted(others, 'line', 'lines')} of {file} are about files that are not among the labelled photographs")
    sorted_by = {column: [own.get(name, "") for name in names] for column, own in columns.items() if own}
    targets, probabilities, first = labelled.targets, labelled.probabilities, labelled.unadapted["templates"]
    return {column: judge_groups(targets, probabilities, first, values, classes) for column, values in sorted_by.items()}


def _positions(records: Sequence[ImageRecord]) -> list[int]:
    return [cast(int, record.index) for record in records]


def _classes(logits: Mapping[str, Tensor], rows: list[int]) -> dict[str, np.ndarray]:
    return {name: own.numpy()[rows].argmax(1) for name, own in logits.items()}


def judge_unknown(doubt: np.ndarray, strange: np.ndarray) -> dict[str, Any]:
    """How well ``none_of_these`` tells photographs of no class.

    Args:
        doubt: The column, (N,).
        strange: Which photographs belong to no class, (N,) bool.

    Returns:
        ``n`` of no class and ``known`` of one; ``said_unknown`` and ``said_known``, the shares of both above 0.5; ``auroc`` and ``fpr95``
        (:func:`finelens.evaluation.metrics.auroc_fpr95`).

    Raises:
        UserError: No photograph is of no class.
    """
    if not strange.any():
        raise UserError("--unknown: every label names a class of the run; give photographs of other things, or leave --unknown out")
    said = probably_none(doubt)
    auroc, fpr95 = auroc_fpr95(doubt, strange)
    shares = {"said_unknown": float(said[strange].mean()), "said_known": float(said[~strange].mean())}
    return {"n": int(strange.sum()), "known": int((~strange).sum()), **shares, "auroc": auroc, "fpr95": fpr95}


def summary(result: Mapping[str, Any]) -> str:
    """An evaluation in a line, or two."""
    low, high = result["accuracy_interval"]
    text = (
        f"{result['accuracy']:.1%} of {result['n']} images are right (accuracy; 95 % interval {low:.1%} to {high:.1%}), mean over the classes "
        f"{result['class_mean_accuracy']:.1%}; the unadapted model (zero-shot) {result['zero_shot_accuracy']:.1%}"
    )
    if (described := result["description_ensemble_accuracy"]) is not None:
        text += f", with descriptions {described:.1%}"
    text += say_ranks(result.get("by_rank", ()))
    if photographs := result.get("photographs_left_out"):
        inside = f" ({counted(result['labels_left_out'], 'folder', 'folders')} of no class)" if result["labels_left_out"] else ""
        text += f", {counted(photographs, 'photograph', 'photographs')} without a class left out{inside}"
    elif result["labels_left_out"]:
        text += f", {counted(result['labels_left_out'], 'label', 'labels')} left out"
    text += f", {result['n_failed']} could not be read" if result["n_failed"] else ""
    if result["answered_left_out"]:
        text += f"; {counted(result['answered_left_out'], 'image', 'images')} that a person answered in the run left out"
    if own := result.get("adapted_to"):
        which = "all of these" if own == result["n"] else f"{own} of these"
        text += f"\n{which} are photographs that the run was adapted to, without labels; of new photographs more or fewer may be right"
    if "estimates" in result:
        # Of every photograph here a label says that it belongs to a class.
        said = from_mapping(Estimates, result["estimates"], "estimates").line(None)
        text += f"\nwithout labels one would say of the accuracy: {said}"
    for column, sorted_by in result.get("groups", {}).items():
        text += "\n" + _groups_line(column, sorted_by)
    if (found := result.get("unknown")) is not None:
        text += (
            f"\nnone of the classes: said of {found['said_unknown']:.1%} of {found['n']} such images and of {found['said_known']:.1%} of the others; "
            f"AUROC {found['auroc']:.3f}, FPR95 {found['fpr95']:.3f}"
        )
    return text


def _groups_line(column: str, found: Mapping[str, Any]) -> str:
    """The groups of a column in one line."""
    if found["worst"] is None:
        return f"{column}: fewer than two groups of {LEAST} images"
    by_name = {group["group"]: group for group in found["groups"]}
    ends = " and ".join(f"{name} {by_name[name]['accuracy']:.1%} of {by_name[name]['n']}" for name in (found["worst"], found["best"]))
    low, high = (100 * end for end in found["gap_interval"])
    p = f"p = {found['gap_p']:.3f}" if found["gap_p"] >= 0.001 else "p < 0.001"
    said = f"{column}: worst and best group {ends}; gap {100 * found['gap']:.1f} points ({low:+.1f} to {high:+.1f}, {p})"
    suspected = (found["shortcut"] or {}).get("suspected")
    return said + (f"; may be found by {column}: {', '.join(suspected)}" if suspected else "")
