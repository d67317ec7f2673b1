"""From a model and images, or their features, to logits. Memory does not grow with the number of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from finelens.backbones.features_only import FeatureBackbone
from finelens.core.console import Console
from finelens.core.phases import Phases
from finelens.engine.engine import CPU_CHUNK
from finelens.errors import UserError
from finelens.feature_store.encoder import FeatureEncoder, tower_digest
from finelens.feature_store.extra import ExtraFiles, check_encoders
from finelens.feature_store.extra_towers import Beside
from finelens.feature_store.files import FeatureFile, folder_parts
from finelens.feature_store.folder import FeatureFolder
from finelens.feature_store.store import FeatureStore, feature_rows, features_at
from finelens.images.batches import centre_batches, inference_batches
from finelens.images.decode import DecodeLimits
from finelens.images.discover import ImageFile
from finelens.images.load import BATCH, centre_views, count_images, say_remarks
from finelens.images.store import ImageItems, LoadedImages, load_images
from finelens.methods.parts.views import ViewTask
from finelens.protocol import ImageRecord, ImageStore, Loaded, TargetFeatures
from finelens.runs.model import Model
from finelens.runs.view_answers import predict_stored_views, predict_views

# Files decoded at a time.
GROUP = 512


def predict_store(
    model: Model, store: ImageStore, console: Console, features: TargetFeatures | None = None, encoder: FeatureEncoder | None = None
) -> dict[str, Tensor]:
    """Logits (N, C) by branch of a store, in its order; several processes share the images.

    Args:
        model: The model.
        store: Its images, or their features.
        console: Progress.
        features: What the unadapted tower makes of the store: a method that needs no more costs no forwards then.
        encoder: Of the unadapted tower: a method that looks at many views and trains nothing takes from the cache then what was encoded before.
    """
    if features is not None and not model.entry.needs_pixels:
        return _join([model.logits(rows) for rows in feature_rows(features, BATCH, extra=True)])
    if isinstance(store, FeatureStore):
        return predict_stored_views(model, store, console)
    return model.engine.over_images(store, lambda part: _predict_images(model, part, console, encoder))


def _predict_images(model: Model, store: ImageStore, console: Console, encoder: FeatureEncoder | None) -> dict[str, Tensor]:
    if encoder is not None and isinstance(model.task, ViewTask):
        return predict_views(model, store, encoder, console)
    parts: list[dict[str, Tensor]] = []
    with console.progress(len(store), "predict") as bar:
        for centre, further in _prediction_views(model, store):
            parts.append(model.logits(centre, further))
            bar.update(len(centre))
    return _join(parts)


def _prediction_views(model: Model, store: ImageStore) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Centre views, and the further views that the model's method asks for."""
    plan, preprocess = model.task.inference, model.engine.backbone.preprocess
    if plan is None:
        yield from ((centre, None) for _, centre in centre_batches(store, preprocess, BATCH))
        return
    # So many more pixels an image, so many fewer images at a time.
    size = max(1, 4 * BATCH // (1 + plan.count))
    yield from ((centre, further) for _, centre, further in inference_batches(store, preprocess, plan, size))


@dataclass(frozen=True)
class Request:
    """A question to a model, before anybody says about which images.

    Attributes:
        model: The model.
        limits: Decode limits of its run.
        console: Progress.
        zero_shot: Whether to ask the unadapted model as well.
        extra: Features of further encoders, for a model that looks at them.
        looks: Whether to hand out the unadapted model's features.
    """

    model: Model
    limits: DecodeLimits
    console: Console
    zero_shot: bool = True
    extra: ExtraFiles | None = None
    looks: bool = False


@dataclass(frozen=True)
class Predictions:
    """Logits of many images, read in groups.

    Attributes:
        records: One per input; ``index`` is the row in the tensors.
        logits: (N, C) by branch.
        zero_shot: (N, C) of the unadapted model by text head; empty unless asked for.
        likeness: To the photographs of the fit, (N,), see ``evaluation.familiarity``; empty unless the unadapted model was asked.
        none_of_these: Doubt whether they belong to any class, (N,), see ``evaluation.none_of_these``; empty unless the unadapted model was asked.
        looks: The unadapted model's unit-norm features, (N, E), float16; empty unless asked for, and not gathered.
    """

    records: list[ImageRecord]
    logits: dict[str, Tensor]
    zero_shot: dict[str, Tensor]
    likeness: Tensor = field(default_factory=lambda: torch.zeros(0))
    none_of_these: Tensor = field(default_factory=lambda: torch.zeros(0))
    looks: Tensor = field(default_factory=lambda: torch.zeros(0))


def predict_items(asked: Request, source: list[ImageFile] | ImageItems) -> Predictions:
    """Predict files or Python objects; pixels do not stay in memory.

    Raises:
        UserError: The model has no image tower, or needs other features of further encoders.
    """
    return gathered(item_groups(asked, source))


def item_groups(asked: Request, source: list[ImageFile] | ImageItems, within: range | None = None) -> Iterator[Predictions]:
    """Predictions of :data:`GROUP` files or Python objects at a time; memory does not grow with their number.

    Args:
        asked: The question.
        source: Files or images.
        within: Positions in the source; all by default. Numbers have the same bits where it begins at a multiple of a group.

    Raises:
        UserError: The model has no image tower, or needs other features of further encoders.
    """
    model, console = asked.model, asked.console
    check_tower(model)
    check_encoders(model.extra, asked.extra)
    within = range(count_images(source)) if within is None else within
    say_remarks(source, console)
    with model.unadapted():
        encoder = FeatureEncoder(model.engine, asked.limits.short_side)
    if isinstance(model.task, ViewTask):
        encoder.say_size(len(within), model.task.inference.count, console)
    with console.progress(len(within), "predict") as bar:
        phases = Phases(bar)
        for part in _groups(within):
            with phases.group(len(part)):
                loaded = read_group([source[i] for i in part], asked.limits, phases)
                found = _predict_group(asked, loaded, encoder, phases.console) if len(loaded.store) else Predictions([], {}, {})
            yield replace(found, records=loaded.records)


def read_group(items: ImageItems, limits: DecodeLimits, phases: Phases) -> LoadedImages:
    """Decode a group, a phase of it."""
    with phases.phase(len(items)) as bar:

        def advance(done: int) -> None:
            bar.update(1)

        return load_images(items, limits, progress=advance)


def gathered(parts: Iterable[Predictions]) -> Predictions:
    """Groups as one; rows are counted through."""
    records: list[ImageRecord] = []
    kept: list[Predictions] = []
    rows = 0
    for part in parts:
        records += [replace(r, index=None if r.index is None else r.index + rows) for r in part.records]
        rows += sum(r.index is not None for r in part.records)
        if part.logits:
            kept.append(part)
    seen = [torch.cat([torch.zeros(0), *(getattr(part, name) for part in kept)]) for name in ("likeness", "none_of_these")]
    return Predictions(records, _join([part.logits for part in kept]), _join([part.zero_shot for part in kept]), *seen)


def _groups(within: range) -> Iterator[range]:
    """Neighbours of at most :data:`GROUP`."""
    return (within[start : start + GROUP] for start in range(0, len(within), GROUP))


def predict_features(asked: Request, file: FeatureFile) -> Predictions:
    """Predict the rows of a feature file.

    Raises:
        UserError: The model needs pixels, or features of another model.
    """
    features = _features_of(asked, file)
    return replace(_predict_rows(asked, file.store, features), records=file.records)


def feature_groups(asked: Request, file: FeatureFile, within: range | None = None) -> Iterator[Predictions]:
    """Predictions of :data:`GROUP` rows of a feature file at a time, in the order of its table; ``within`` as for :func:`item_groups`.

    Raises:
        UserError: The model needs pixels, or features of another model.
    """
    whole = _features_of(asked, file)
    within = range(len(file.records)) if within is None else within
    with asked.console.progress(len(within), "predict", "row") as bar:
        for part in _groups(within):
            own = [file.records[i] for i in part]
            # In store order, as photographs of a group are.
            rows = sorted(record.index for record in own if record.index is not None)
            place = {row: k for k, row in enumerate(rows)}
            records = [replace(record, index=None if record.index is None else place[record.index]) for record in own]
            found = _predict_rows(asked, file.store.at(rows), features_at(whole, rows)) if rows else Predictions([], {}, {})
            yield replace(found, records=records)
            bar.update(len(part))


def folder_groups(asked: Request, folder: FeatureFolder, within: range | None = None) -> Iterator[Predictions]:
    """Predictions of :data:`GROUP` files of a feature folder at a time; one shard is in memory; ``within`` as for :func:`item_groups`.

    Raises:
        UserError: The model needs pixels, or features of another model; a shard is damaged.
    """
    within = range(len(folder)) if within is None else within
    with asked.console.progress(len(within), "predict", "row") as bar:
        for part in folder_parts(folder, within, GROUP):
            found = predict_features(asked, part) if len(part.store) else Predictions(part.records, {}, {})
            yield found
            bar.update(len(part.records))


def _features_of(asked: Request, file: FeatureFile) -> TargetFeatures:
    """The rows of a file with those of further encoders, if the model can classify them."""
    _check_features(asked.model, file)
    check_encoders(asked.model.extra, asked.extra)
    return _with_extra(asked, file.store.features, file)


def _predict_rows(asked: Request, store: FeatureStore, features: TargetFeatures) -> Predictions:
    model = asked.model
    first = [model.zero_shot_logits(rows) for rows in feature_rows(features, BATCH)] if asked.zero_shot else []
    seen = model.seen_before(features.global_)
    return Predictions([], predict_store(model, store, Console(enabled=False), features), _join(first), *seen, _looks(asked, features))


def _looks(asked: Request, features: TargetFeatures | None) -> Tensor:
    if features is None or not asked.looks:
        return torch.zeros(0)
    return torch.nn.functional.normalize(features.global_.float(), dim=1).half().cpu()


def _with_extra(asked: Request, features: TargetFeatures, source: Loaded) -> TargetFeatures:
    if asked.extra is None:
        return features
    further = asked.extra.of(source, Beside(asked.model.engine, asked.limits.short_side)).features
    return replace(features, extra=tuple(rows.to(features.cls.device) for rows in further))


def _predict_group(asked: Request, loaded: LoadedImages, encoder: FeatureEncoder, console: Console) -> Predictions:
    model, zero_shot, store = asked.model, asked.zero_shot, loaded.store
    features = None
    if zero_shot or asked.looks or not model.entry.needs_pixels:
        with model.unadapted():
            # Filling a chunk up and keeping the result is not worth it for a few images.
            few = len(store) < CPU_CHUNK and not isinstance(model.task, ViewTask)
            views = centre_views(store, model.engine.backbone.preprocess, console, "encode")
            own = model.engine.features(views) if few else encoder.centre(store, console, "encode")
        features = _with_extra(asked, own, loaded)
    first = [model.zero_shot_logits(rows) for rows in feature_rows(features, BATCH)] if zero_shot and features is not None else []
    seen = (torch.zeros(0), torch.zeros(0)) if features is None else model.seen_before(features.global_)
    return Predictions([], predict_store(model, store, console, features, encoder), _join(first), *seen, _looks(asked, features))


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def check_tower(model: Model) -> None:
    """Refuse photographs for a model that knows features only."""
    backbone = model.engine.backbone
    if isinstance(backbone, FeatureBackbone):
        backbone.refuse_pixels()


def _check_features(model: Model, file: FeatureFile) -> None:
    """Refuse features that the model cannot classify.

    Raises:
        UserError: The model's tower was trained, or the features are of another model.
    """
    backbone = model.engine.backbone
    if model.entry.trains:
        raise UserError(f"the run's method {model.method} needs photographs, and {file.path} holds features; give the folder of photographs")
    if isinstance(backbone, FeatureBackbone):
        if file.dim != backbone.dim:
            raise UserError(f"{file.path} has features of {file.dim} columns, the run was made on {backbone.dim}; use features of the same model")
        fits = not file.tower or not backbone.tower or file.tower == backbone.tower
    else:
        with model.unadapted():
            fits = file.tower == tower_digest(backbone)
    if not fits and file.backbone == backbone.name:
        raise UserError(
            f"{file.path} holds features of {backbone.name} with other weights than the run has (--stage trains them, and a model that was replaced "
            "has others); give the photographs"
        )
    if not fits:
        raise UserError(
            f"{file.path} holds features of another model than the run's ({backbone.name}); "
            "write it with finelens features and that --backbone, or give the photographs"
        )
