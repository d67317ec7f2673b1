"""The verbs of finelens from Python. The command line calls exactly these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from finelens.classes.names import read_class_file
from finelens.config import RunConfig, TextConfig, TrainingConfig, from_mapping
from finelens.console import Console, duration
from finelens.errors import UserError
from finelens.evaluation.labels import read_labels
from finelens.evaluation.metrics import accuracy, evaluate_predictions
from finelens.files import write_json
from finelens.health import balance, collapse_warning
from finelens.images.discover import ImageFile, discover
from finelens.images.store import ImageItems, LoadedImages
from finelens.images.views import ViewConfig
from finelens.methods.registry import find_method
from finelens.models import Model, load_model, save_model
from finelens.pipeline import Predictions, decode_limits, fit, load, predict_items, predict_store, prepare, status_counts
from finelens.predictions import PredictionRow, rows_from_logits, softmax, write_predictions
from finelens.protocol import ClassSet, Preprocess
from finelens.runs import RunFolder
from finelens.strict import to_plain
from finelens.training.checkpoint import read_events_offset
from finelens.training.loop import Hooks

Assignments = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class RunResult:
    """What a finished run says.

    Attributes:
        path: The run folder.
        rows: The rows of ``predictions.csv``.
    """

    path: Path
    rows: list[PredictionRow]


def make_config(verb: str, photos: str, method: str, assignments: Assignments, **given: Any) -> RunConfig:
    """Resolve every option of a run.

    Args:
        verb: ``adapt`` or ``zero-shot``.
        photos: Folder of photographs, or what to call images that come from Python.
        method: Name of the method.
        assignments: Values by section and key, as ``--set`` gives them.
        given: Further fields of :class:`~finelens.config.RunConfig`.

    Raises:
        UserError: An unknown or ill-typed option; the message names the nearest.
    """
    found = find_method(method)
    training = assignments.get("training", {})
    idle = sorted(set(training) - {"precision"})
    if idle and not found.trains:
        raise UserError(f"training.{idle[0]} has no effect: method {method} does not train; choose another --method or leave it out")
    return RunConfig(
        verb=cast(Any, verb),
        photos=photos,
        method=method,
        training=from_mapping(TrainingConfig, training, "training"),
        views=from_mapping(ViewConfig, assignments.get("views", {}), "views"),
        text=from_mapping(TextConfig, assignments.get("text", {}), "text"),
        method_options=to_plain(from_mapping(found.config_class, assignments.get("method", {}), "method")),
        **given,
    )


def adapt(
    photos: str | Path,
    classes: str | Path,
    out: str | Path,
    *,
    descriptions: str | Path | None = None,
    backbone: str = "embedded",
    method: str = "microclip",
    seed: int = 0,
    device: str = "cpu",
    options: Assignments | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    should_stop: Callable[[], bool] | None = None,
    verb: str = "adapt",
) -> RunResult:
    """Adapt a model to a folder of unlabelled photographs and write a run folder.

    Args:
        photos: Folder of photographs; sub-folders are searched, their names are never read as labels.
        classes: File of class names.
        out: The run folder: new, empty, or an earlier run with ``overwrite``.
        descriptions: JSON file {class: [sentence, ...]}; templates stand in without it.
        backbone: ``embedded``, ``open_clip:NAME/TAG``, ``hf-hub:ORG/REPO`` or ``local:DIR``.
        method: Name of the method, see ``finelens methods``.
        seed: Seed of all randomness.
        device: ``cpu``, ``cuda`` or ``mps``.
        options: Values by section and key, e.g. ``{"training": {"epochs": 3}}``.
        overwrite: Whether an earlier run in ``out`` is replaced.
        console: What is said on the way; by default lines and bars on standard error.
        should_stop: Asked after each training step; True saves and raises :class:`~finelens.training.loop.Interrupted`.
        verb: Recorded in the configuration.

    Raises:
        UserError: Input that cannot be used; the message names it and the remedy.
    """
    console = console or Console()
    config = make_config(
        verb,
        _absolute(photos),
        method,
        options or {},
        classes_file=_absolute(classes),
        descriptions_file=None if descriptions is None else _absolute(descriptions),
        backbone=backbone,
        seed=seed,
        device=device,
    )
    names = read_class_file(Path(classes))
    _check_descriptions(descriptions)
    files = discover(Path(photos), exclude=Path(out))
    with RunFolder.create(out, config, overwrite=overwrite) as run:
        try:
            return _execute(run, files, names, console, should_stop, resume=False)
        except UserError:
            # Nothing has happened in the folder yet: the corrected command may use it.
            if not run.events_path.exists():
                run.config_path.unlink(missing_ok=True)
            raise


def _absolute(path: str | Path) -> str:
    """A run can be resumed from any folder."""
    return str(Path(path).absolute())


def zero_shot(photos: str | Path, classes: str | Path, out: str | Path, *, method: str = "zero-shot", **given: Any) -> RunResult:
    """Classify with the unadapted model; arguments as for :func:`adapt`."""
    if find_method(method).trains:
        raise UserError(f"method {method} trains: use finelens adapt --method {method}")
    return adapt(photos, classes, out, method=method, verb="zero-shot", **given)


def resume(run: str | Path, *, console: Console | None = None, should_stop: Callable[[], bool] | None = None) -> RunResult | None:
    """Go on with an interrupted run, with its own configuration.

    Returns:
        The finished run; None where it was finished already.

    Raises:
        UserError: Not a run, in use, or its images have changed.
    """
    console = console or Console()
    with RunFolder.open(run) as folder:
        if any(event["event"] == "end" for event in folder.events()):
            console.say(f"{folder.path} is finished; nothing to resume")
            return None
        config = folder.config
        names = read_class_file(Path(str(config.classes_file)))
        files = discover(Path(config.photos), exclude=folder.path)
        return _execute(folder, files, names, console, should_stop, resume=True)


def _check_descriptions(path: str | Path | None) -> None:
    """Fail before the model is loaded, which takes seconds."""
    if path is not None:
        from finelens.classes.descriptions import load_descriptions

        load_descriptions(Path(path))


def _execute(
    run: RunFolder, files: list[ImageFile], names: list[str], console: Console, should_stop: Callable[[], bool] | None, *, resume: bool
) -> RunResult:
    config = run.config
    offset = read_events_offset(run.checkpoint_dir) if resume else 0
    known = _logged_digests(run) if offset else {}
    if resume:
        run.resume(offset)
    fresh = offset == 0
    prepared = prepare(config, names, config.descriptions_file, console)
    texts = classes_digest(prepared.classes)
    if known.get("classes", texts) != texts:
        raise UserError(f"the class names, templates or descriptions of {run.path} have changed since the run was started; start a new run")
    loaded = load(files, decode_limits(config, prepared.engine.backbone.preprocess), console, run.path)
    digest = images_digest(loaded)
    if known.get("images", digest) != digest:
        raise UserError(f"the photographs in {config.photos} have changed since the run was started; start a new run with finelens adapt")
    counts = status_counts(loaded.records)
    console.say(f"images: {len(loaded.records)} files, " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    if fresh:
        run.log("start", verb=config.verb, method=config.method, backbone=config.backbone, seed=config.seed)
        run.log("images", files=len(loaded.records), counts=counts, digest=digest)
        report = None if prepared.report is None else prepared.report.to_json()
        offset = run.log("classes", classes=len(names), templates=list(prepared.classes.templates), descriptions=report, digest=texts)
    hooks = Hooks(run=run, checkpoints=run.checkpoint_dir, events_offset=offset, should_stop=should_stop or (lambda: False))
    fitted = fit(prepared, loaded.store, config, console, hooks, resume=resume and not fresh)
    logits = predict_store(fitted.model, loaded.store, console)["logits"]
    rows = rows_from_logits(loaded.records, names, logits.numpy(), fitted.zero_shot_logits.argmax(1).numpy())
    save_model(run.model_dir, fitted.model)
    write_predictions(run.predictions_path, rows)
    run.log("predictions", rows=len(rows), counts=counts)
    result = RunResult(run.path, rows)
    _finish(run, fitted.model, result, console)
    return result


def images_digest(loaded: LoadedImages) -> str:
    """Hash of the readable images' contents, whatever their names."""
    return hashlib.sha256("\n".join(loaded.store.ids).encode()).hexdigest()


def classes_digest(classes: ClassSet) -> str:
    """Hash of the class names and of every text about them."""
    return hashlib.sha256(json.dumps(to_plain(classes)).encode()).hexdigest()


def _logged_digests(run: RunFolder) -> dict[str, str]:
    return {event["event"]: event["digest"] for event in run.events() if "digest" in event}


def _finish(run: RunFolder, model: Model, result: RunResult, console: Console) -> None:
    engine = model.engine
    stages = {name: round(seconds, 3) for name, seconds in engine.stopwatch.seconds.items()}
    run.log("end", no_grad_forwards=engine.no_grad_forwards, grad_forwards=engine.grad_forwards, seconds=stages)
    spent = ", ".join(f"{name} {duration(seconds)}" for name, seconds in sorted(stages.items(), key=lambda item: -item[1])[:5])
    console.say(f"time: {spent}")
    console.say(balance(result.rows, model.class_names))
    warning = collapse_warning(result.rows, model.class_names)
    if warning is not None:
        console.warn(warning)
        run.log("warning", message=warning)
    console.say(f"wrote {run.predictions_path}")


class Classifier:
    """A finished run, ready to predict.

    Attributes:
        model: The loaded model.
        classes: Class names, in the order of the columns of ``predict_proba``.
    """

    def __init__(self, model: Model, config: RunConfig) -> None:
        self.model = model
        self.classes = list(model.class_names)
        self._config = config

    @property
    def _limits(self) -> Any:
        return decode_limits(self._config, self._preprocess)

    @property
    def _preprocess(self) -> Preprocess:
        return self.model.engine.backbone.preprocess

    def predictions(self, images: str | Path | ImageItems, *, zero_shot: bool = True, console: Console | None = None) -> Predictions:
        """Logits of a folder or of Python images, by branch and with the unadapted model's beside them."""
        source = discover(Path(images)) if isinstance(images, (str, Path)) else images
        return predict_items(self.model, source, self._limits, console or Console(enabled=False), zero_shot=zero_shot)

    def predict_proba(self, images: str | Path | ImageItems) -> np.ndarray:
        """Class probabilities (N, C), one row per input in its order; a file that cannot be read gives a row of NaN.

        Args:
            images: A folder, or a sequence of paths, Pillow images, uint8 arrays or tensors.
        """
        found = self.predictions(images, zero_shot=False)
        out = np.full((len(found.records), len(self.classes)), np.nan)
        if found.logits:
            probabilities = softmax(found.logits["logits"].numpy())
            for row, record in enumerate(found.records):
                if record.index is not None:
                    out[row] = probabilities[record.index]
        return out

    def predict(self, images: str | Path | ImageItems) -> list[str | None]:
        """Class names, one per input; None for a file that cannot be read."""
        return [None if np.isnan(row[0]) else self.classes[int(row.argmax())] for row in self.predict_proba(images)]


def load_run(run: str | Path, *, device: str = "cpu") -> Classifier:
    """Load a finished run.

    Args:
        run: The run folder.
        device: Where to run it.

    Raises:
        UserError: Not a run, not finished, or damaged.
    """
    folder = RunFolder.open(run, lock=False)
    return Classifier(load_model(folder.model_dir, device=device), folder.config)


def predict(run: str | Path, photos: str | Path, csv: str | Path, *, device: str = "cpu", console: Console | None = None) -> list[PredictionRow]:
    """Classify new photographs with a finished run and write a CSV file with the columns of ``predictions.csv``."""
    console = console or Console()
    files = discover(Path(photos))
    classifier = load_run(run, device=device)
    found = predict_items(classifier.model, files, classifier._limits, console)
    rows = _rows(found, classifier.classes)
    write_predictions(Path(csv), rows)
    counts = status_counts(found.records)
    console.say(f"{len(rows)} files: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    console.say(f"wrote {csv}")
    return rows


def _rows(found: Predictions, classes: Sequence[str]) -> list[PredictionRow]:
    if not found.logits:
        return rows_from_logits(found.records, classes, np.zeros((0, len(classes))))
    return rows_from_logits(found.records, classes, found.logits["logits"].numpy(), found.zero_shot["templates"].argmax(1).numpy())


def evaluate(
    run: str | Path,
    test: str | Path,
    labels: str | Path = "folders",
    *,
    device: str = "cpu",
    json_file: str | Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Score a finished run on labelled photographs; the only place where labels meet the code.

    Args:
        run: The run folder.
        test: Folder of test photographs.
        labels: ``folders`` (the first sub-folder names the class) or a CSV file with the columns ``path`` and ``label``.
        device: Where to run it.
        json_file: Where to write the result.
        console: Progress.

    Returns:
        What :func:`finelens.evaluation.metrics.evaluate_predictions` returns, and ``description_ensemble_accuracy``, the unadapted model with the
        mean of each class's descriptions.

    Raises:
        UserError: Labels that cannot be matched, or no labelled image that can be read.
    """
    console = console or Console()
    classifier = load_run(run, device=device)
    truth = read_labels(Path(test), labels, classifier.classes)
    files = [file for file in discover(Path(test)) if file.name in truth]
    found = predict_items(classifier.model, files, classifier._limits, console)
    kept = [record for record in found.records if record.index is not None]
    if not kept:
        raise UserError(f"none of the {len(files)} labelled files in {test} is an image that can be read")
    targets = np.array([truth[record.name] for record in kept])
    order = [cast(int, record.index) for record in kept]
    result = evaluate_predictions(
        targets,
        softmax(found.logits["logits"].numpy()[order]),
        classifier.classes,
        zero_shot=found.zero_shot["templates"].numpy()[order].argmax(1),
        branches={name: logits.numpy()[order].argmax(1) for name, logits in found.logits.items()},
        n_failed=len(found.records) - len(kept),
    )
    result["description_ensemble_accuracy"] = accuracy(targets, found.zero_shot["descriptions"].numpy()[order].argmax(1))
    if json_file is not None:
        write_json(Path(json_file), result)
    return result


def summary(result: Mapping[str, Any]) -> str:
    """An evaluation in one line."""
    low, high = result["accuracy_interval"]
    text = (
        f"accuracy {result['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%}), class mean {result['class_mean_accuracy']:.1%}, "
        f"zero-shot {result['zero_shot_accuracy']:.1%}, description ensemble {result['description_ensemble_accuracy']:.1%}, {result['n']} images"
    )
    return text + (f", {result['n_failed']} could not be read" if result["n_failed"] else "")
