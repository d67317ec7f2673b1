"""From images and classes to a model. It knows no run folder and no command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finelens.classes.made_up import words_beside_names
from finelens.core.console import Console, duration
from finelens.engine.compiled import worth_compiling
from finelens.engine.engine import Engine
from finelens.errors import UserError
from finelens.evaluation.calibration import label_free_temperature
from finelens.evaluation.familiarity import learn_familiarity
from finelens.evaluation.name_sense import name_sense
from finelens.evaluation.none_of_these import learn_none_of_these, with_neighbours
from finelens.evaluation.weak_start import HARDLY, REMEDY
from finelens.feature_store.encoder import target_features
from finelens.feature_store.support import encode_support
from finelens.images.batches import batches, centre_batches
from finelens.images.load import BATCH, centre_views
from finelens.images.subset import StoreSubset
from finelens.methods.method import ZERO_SHOT
from finelens.methods.registry import check_hints
from finelens.protocol import Batch, Cost, Hints, ImageStore, TargetFeatures, ViewPlan
from finelens.runs.alarms import check_image_features, check_prototypes, with_alarms
from finelens.runs.config import RunConfig
from finelens.runs.model import Model, adapted_tensors
from finelens.runs.prepare import Prepared, start_from, unadapted_logits, with_method
from finelens.training.estimate import estimate
from finelens.training.loop import Hooks, Trainer
from finelens.training.prefix_cache import check_cached_prefix


@dataclass(frozen=True)
class Fitted:
    """An adapted model and what it was measured against.

    Attributes:
        model: The model.
        zero_shot_logits: Logits of the unadapted model on the target images, (N, C), in store order.
        features: Features of the target images by the unadapted model; None where the method needs pixels, and may have changed what it was given.
        described_logits: The same with the descriptions, (N, C); None without descriptions.
        looks: A copy of the unadapted model's unit-norm features, (N, E), float16 on the host: what the run's own measures rest on.
        untrained: Why nothing was trained though the method trains; None where it was.
        name_sense: How far class names stand out from made-up words; None where no text was encoded.
        none_of_these: Doubt whether each image belongs to any of the classes, (N,), in store order.
    """

    model: Model
    zero_shot_logits: Tensor
    features: TargetFeatures | None
    described_logits: Tensor | None
    looks: Tensor
    untrained: str | None = None
    name_sense: float | None = None
    none_of_these: Tensor = field(default_factory=lambda: torch.zeros(0))


def fit(
    prepared: Prepared,
    store: ImageStore,
    config: RunConfig,
    console: Console,
    hooks: Hooks | None = None,
    *,
    hints: Hints | None = None,
    resume: bool = False,
) -> Fitted:
    """Adapt to the images; methods that do not use them prepare what they make of the texts.

    A method that trains on answers of its own is not let loose where the starting model hardly knows the classes (``training.guard``).

    Args:
        prepared: From :func:`prepare`.
        store: Unlabelled images.
        config: The run.
        console: What to say.
        hooks: Log, checkpoints, interruption; progress is added here.
        hints: Classes that the user gave for a few of the images.
        resume: Go on from the checkpoint.

    Raises:
        UserError: The method learns from labelled photographs and there are none, hints are given to a method that does not look at images, or
            the run cannot keep prefixes as it was asked to.
    """
    seen = _look(prepared, store, config, console, hints)
    untrained = None if resume else _guard(prepared, store, seen, config, console)
    if untrained is not None:
        answering, options = prepared.method.without_training(config.method_options)
        whose = "the unadapted model" if answering == ZERO_SHOT else answering
        console.say(f"nothing is trained, the answers are those of {whose}, because {HARDLY}: {untrained} (docs/guard.md)")
        config = replace(config, method=answering, method_options=options)
        prepared = with_method(prepared, config)
    base = _learn(prepared, store, seen, config, console, hooks or Hooks(), resume)
    return _wrap(prepared, config, seen, base, untrained)


@dataclass(frozen=True)
class _Seen:
    """The images as the unadapted model sees them.

    Attributes:
        features: What a method is fitted to, hints among them.
        zero_shot: Logits (N, C) on the host with templates.
        described: Those with descriptions; None without.
        looks: A copy of the unit-norm features, (N, E), float16 on the host: a method may change what it is given.
    """

    features: TargetFeatures
    zero_shot: Tensor
    described: Tensor | None
    looks: Tensor


def _look(prepared: Prepared, store: ImageStore, config: RunConfig, console: Console, hints: Hints | None) -> _Seen:
    """Encode the images with the unadapted model and let it answer."""
    engine = prepared.engine
    check_hints(prepared.method, given=hints is not None)
    if config.training.cached_prefix:
        check_cached_prefix(engine, prepared.task, config.training.scope)
    features = target_features(engine, store, prepared.limits.short_side, console)
    check_image_features(features.global_, console)
    if not prepared.classes.templates:
        check_prototypes(prepared.heads.templates, features.global_, console)
    features = replace(features, hints=hints)
    if prepared.extra is not None:
        features = replace(features, extra=prepared.extra.features, extra_rows=prepared.extra.rows)
    zero_shot, described = unadapted_logits(prepared, features)
    return _Seen(features, zero_shot, described, features.global_.to("cpu", torch.float16, copy=True))


def _guard(prepared: Prepared, store: ImageStore, seen: _Seen, config: RunConfig, console: Console) -> str | None:
    """Why the method must not train from this start; None where it may, or does not train on answers of its own."""
    method, hints = prepared.method, seen.features.hints
    if not method.trains or method.few_shot or config.training.guard == "off":
        return None
    # Asked of the images that it would train on, and of all processes alike.
    start = start_from(prepared, belonging(store, seen.features, seen.zero_shot)[1])
    if not prepared.engine.processes.any(start.weak):
        return None
    if _labelled(hints):
        console.warn(f"{HARDLY}: {start.account}. Training goes on, since photographs are labelled; --method auto makes more of few labels")
        return None
    console.warn(REMEDY)
    return start.account


def _learn(prepared: Prepared, store: ImageStore, seen: _Seen, config: RunConfig, console: Console, hooks: Hooks, resume: bool) -> dict[str, Tensor]:
    """Let the method learn; returns what the adapted tensors of the backbone were before."""
    engine, method, features, base = prepared.engine, prepared.method, seen.features, {}
    if method.adapts:
        adapted = adapted_tensors(engine.backbone, config.training.scope)
        base = {name: tensor.detach().cpu().clone() for name, tensor in adapted.items()}
        features = engine.centre(features)
        if prepared.support is not None:
            features = replace(features, support=encode_support(engine, prepared.support))
    if not method.trains:
        if method.adapts:
            console.say(f"sorting {len(features.global_ if features.rows is None else features.rows)} images with {config.method}")
        with engine.stopwatch("solve"):
            prepared.task.prepare(features)
            for line in prepared.task.notes():
                console.detail(line)
                if hooks.run is not None:
                    hooks.run.log("decision", message=line)
        return base
    learners, features, known = belonging(store, features, seen.zero_shot)
    features = replace(
        features,
        views=lambda preprocess: centre_views(learners, preprocess, console, "look with the second encoder"),
        first_views=lambda plan: _first_views(engine, learners, plan, config, console),
    )
    _train(prepared, learners, config, console, with_alarms(hooks, engine, known, prepared.classes.names, console), features, resume)
    engine.backbone.merge()
    return base


def _wrap(prepared: Prepared, config: RunConfig, seen: _Seen, base: dict[str, Tensor], untrained: str | None) -> Fitted:
    """The model, and what it is measured against."""
    heads = {"templates": prepared.heads.templates, "descriptions": prepared.heads.descriptions}
    further = () if prepared.extra is None else prepared.extra.encoders
    options = config.method_options
    familiarity, near = learn_familiarity(seen.looks) or (None, None)
    averaged = with_neighbours(seen.looks, None if familiarity is None else familiarity.bank, near)
    none, doubt = learn_none_of_these(averaged, list(heads.values()), words_beside_names(prepared.heads, prepared.name_texts))
    names, task = prepared.classes.names, prepared.task
    model = Model(prepared.engine, task, names, config.method, options, config.training, heads, base, 1.0, further, familiarity, none)
    features = None if prepared.method.needs_pixels else replace(seen.features, hints=None)
    return Fitted(model, seen.zero_shot, features, seen.described, seen.looks, untrained, _name_sense(prepared, seen.looks), doubt)


def _name_sense(prepared: Prepared, looks: Tensor) -> float | None:
    """How far class names stand out from made-up words on the images; None where no text was encoded."""
    texts = prepared.name_texts
    return None if texts is None else name_sense(looks, texts.names, texts.made_up, prepared.engine.backbone.logit_scale)


def _labelled(hints: Hints | None) -> bool:
    """Whether a person named the class of a photograph."""
    return hints is not None and bool((hints.label >= 0).any())


def belonging(store: ImageStore, features: TargetFeatures, zero_shot: Tensor) -> tuple[ImageStore, TargetFeatures, Tensor]:
    """Leave out the images that a person said belong to no class: there is nothing to train them towards.

    Args:
        store: All images.
        features: Of all images, with the hints.
        zero_shot: Logits of all images, (N, C).

    Returns:
        The other images, their features and their logits; the arguments themselves where nobody said so.

    Raises:
        UserError: No image is left.
    """
    hints = features.hints
    if hints is None or not (hints.label < 0).any():
        return store, features, zero_shot
    keep = torch.ones(len(store), dtype=torch.bool)
    keep[hints.index[hints.label < 0]] = False
    if not keep.any():
        raise UserError("every photograph is hinted to belong to none of the classes: there is nothing to adapt to")
    # The new position of an image is the number of kept ones before it.
    place, named = keep.cumsum(0) - 1, hints.label >= 0
    subset = StoreSubset(store, keep.nonzero()[:, 0].tolist())
    kept = keep.to(features.global_.device)
    left = hints.some(named, place[hints.index[named]])
    return subset, replace(features, global_=features.global_[kept], cls=features.cls[kept], hints=left), zero_shot[keep]


def run_temperature(fitted: Fitted, logits: Tensor, nearest: Tensor) -> float:
    """The label-free temperature of a fitted model.

    Args:
        fitted: From :func:`fit`.
        logits: Of the method on the same images, (N, C).
        nearest: Nearest other images of each, (N, K).
    """
    described = [] if fitted.described_logits is None else [fitted.described_logits]
    return label_free_temperature(logits, [fitted.zero_shot_logits, *described], nearest)


def _train(prepared: Prepared, store: ImageStore, config: RunConfig, console: Console, hooks: Hooks, features: Any, resume: bool) -> None:
    engine, task, training = prepared.engine, prepared.task, config.training
    trainer = Trainer(task, engine, store, training, config.views, seed=config.seed, hooks=hooks)
    if resume:
        trainer.resume()
        _say_estimate(trainer, console, prepared=True)
    elif task.cost().once:
        # Said before the long pass, not after it.
        _say_estimate(trainer, console, prepared=False)
        task.prepare(features)
    else:
        task.prepare(features)
        _say_estimate(trainer, console, prepared=True)
    epochs = training.epochs - trainer.position.epoch
    done = trainer.position.images
    look = partial(_as_tuned, engine, store, features, console)
    with console.progress(trainer.count * epochs, f"adapt with {config.method}") as bar:
        bar.update(done)
        trainer.hooks = replace(hooks, on_images=lambda count: bar.update(count), look=look)
        trainer.run()
    if task.cost().after:
        task.end_training(look())
    for line in task.notes():
        console.say(line)
        if hooks.run is not None:
            hooks.run.log("decision", message=line)


def _as_tuned(engine: Engine, store: ImageStore, features: TargetFeatures, console: Console) -> TargetFeatures:
    """The features by the tower as it is now; they go to no cache, since no other run asks for them.

    Raises:
        UserError: Some are not finite: the last update of the weights, which no step follows, went too far.
    """
    parts = []
    with console.progress(len(store), "look with the tuned model") as bar:
        for rows, pixels in centre_batches(store, engine.backbone.preprocess, BATCH):
            parts.append(engine.encode_each(pixels))
            bar.update(len(rows))
    tuned = replace(features, global_=torch.cat([part.global_ for part in parts]), cls=torch.cat([part.cls for part in parts]))
    bad = int((~(tuned.global_.isfinite().all(1) & tuned.cls.isfinite().all(1))).sum())
    if bad:
        raise UserError(
            f"after the training the features of {bad} of {len(store)} images are not finite; start again with a lower training.lr, or with "
            "training.precision=float32"
        )
    return tuned


def _say_estimate(trainer: Trainer, console: Console, *, prepared: bool) -> None:
    engine, cost, epochs = trainer.engine, trainer.task.cost(), trainer.config.epochs - trainer.position.epoch
    work = f"{trainer.count} images x {epochs} {'epoch' if epochs == 1 else 'epochs'}"
    if cost == Cost(0, 0):
        console.detail(f"training on {work}, without the image tower")
        return
    draws = 0 if trainer.prefixes is None else trainer.prefixes.draws
    expected = estimate(trainer.task, engine, trainer.count, epochs, prepared=prepared, draws=draws)
    forwards = f"{cost.no_grad_forwards:g} forwards + {cost.grad_forwards:g} with gradient = {expected.flops / 1e9:.3g} GFLOP"
    once_each = f"{expected.flops_once / expected.tower.forward:g} forwards of each = {expected.flops_once / 1e9:.3g} GFLOP"
    once = f", and once {once_each}" if expected.flops_once else ""
    first = trainer.position.epoch + draws + 1
    later = f"; from epoch {first} on {expected.flops_kept / 1e9:.3g} GFLOP, behind the first blocks" if 0 < draws < epochs else ""
    console.say(f"predicted time: about {duration(expected.seconds)}")
    console.detail(f"training on {work} x ({forwards}{later}){once}")
    engine.tower_flops = expected.tower
    work_of_run = trainer.count * (trainer.config.epochs * expected.flops + expected.flops_once)
    if not draws and worth_compiling(trainer.config.compile, engine.device, work_of_run):
        console.detail("compile: the image tower's forward (training.compile); the first steps take longer")
        engine.compile()


def _first_views(engine: Engine, store: ImageStore, plan: ViewPlan, config: RunConfig, console: Console) -> Iterator[Batch]:
    """Views of the first epoch in store order; so many at a time that memory does not grow with the crops."""
    size, order = max(1, 4 * BATCH // (1 + plan.crops)), np.arange(len(store))
    stream = batches(store, engine.backbone.preprocess, plan, config.views, config.seed, 0, size, order)
    with console.progress(len(store), "look once at the views") as bar, closing(stream):
        while True:
            with engine.stopwatch("wait for views"):
                batch = next(stream, None)
            if batch is None:
                return
            yield batch
            bar.update(len(batch.index))
