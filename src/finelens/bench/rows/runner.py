"""A method on a split: its answers, found while labels are sealed, and what they cost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finelens.bench.rows.context import Context
from finelens.bench.rows.features import take
from finelens.bench.rows.health import Health, health_of
from finelens.bench.rows.memory import peak_megabytes, reset_peak
from finelens.bench.rows.protocols import Protocol, SkippedError, Split
from finelens.bench.rows.unknown import scores_of
from finelens.bench.sets.sealed import RuleBroken, method_runs
from finelens.core.private_torch import version
from finelens.engine.device import Precision
from finelens.engine.engine import Engine, TowerFlops
from finelens.feature_store.encoder import FeatureEncoder
from finelens.feature_store.store import feature_rows
from finelens.images.load import BATCH
from finelens.methods.parts.frozen import cosine_logits
from finelens.methods.parts.solver import SolverTask
from finelens.methods.parts.views import ViewTask
from finelens.methods.registry import Method
from finelens.protocol import Backbone, Hints
from finelens.runs.config import RunConfig
from finelens.runs.fit import Fitted, fit
from finelens.runs.model import copy_into
from finelens.runs.predict import predict_store
from finelens.solvers.online import OnlineSolver
from finelens.storage.cache_place import LIMIT_VARIABLE, cache_limit
from finelens.storage.predictions import softmax

# In an inductive protocol an answer depends on no other test image: some images are asked alone before all are asked, and probabilities are compared.
# Stored features, and float32 on a CPU, leave room for the last digits only; half precision and a GPU may round batches of another size otherwise.
ALONE = 8
TOLERANCE, TOLERANCE_ROUNDED = 1e-3, 0.1
# Flat logits are sharpened before: with 100 nearly even classes no probability could move by a tolerance, whatever the answer. CLIP's own logits of
# an image lie about so far apart; float32 allows so large a factor for logits of size 1.
SHARP, FLOAT32_ROOM = 20.0, 100.0


@dataclass(frozen=True)
class Answers:
    """What a method said, and what it cost.

    Attributes:
        logits: (N, C) by branch, in the order of the split's test rows.
        cost: Counted work.
        timing: Seconds by stage, and memory.
        health: What a run would say about itself without labels: its temperature, signals and verdict; None where that was not asked.
        none_of_these: Scores by which images of no class are told, each (N,); empty where the protocol has none.
    """

    logits: dict[str, np.ndarray]
    cost: dict[str, Any]
    timing: dict[str, Any]
    health: Health | None = None
    none_of_these: dict[str, np.ndarray] = field(default_factory=dict)


def refuse(method: Method, protocol: Protocol) -> None:
    """Say why a method cannot run under a protocol.

    Raises:
        SkippedError: It cannot.
    """
    if method.few_shot and protocol.change != "fewshot":
        raise SkippedError("the method learns from labelled images, and the protocol gives none")
    if "support" in method.needs:
        raise SkippedError("the method needs a support set, and the protocol gives none")
    if protocol.setting == "online" and method.adapts and "stream" not in method.needs:
        raise SkippedError("the method sees all images before it answers; online takes methods for streams and methods that do not adapt")


def answer(context: Context, config: RunConfig, protocol: Protocol, split: Split) -> Answers:
    """Run a method as a user's run does. Methods that need no more than the features of the centre view share them.

    Raises:
        RuleBroken: The method was caught.
    """
    method = config.entry
    run = _from_pixels if method.needs_pixels else _from_features
    if method.family == "views" and cache_limit():
        run = _from_views
    if protocol.setting == "online" and method.adapts:
        run = _from_stream
    with method_runs():
        return run(context, method, config, protocol, split)


def zero_shot(context: Context, split: Split) -> dict[str, np.ndarray]:
    """Logits (N, C) of the unadapted model with each text head, in the order of the split's test rows."""
    engine, heads = context.start.engine, context.heads(split.names)
    features = context.test.features.global_[torch.as_tensor(split.test)]
    both = {"templates": heads.templates, "descriptions": heads.descriptions}
    return {name: cosine_logits(engine, features, head).float().cpu().numpy() for name, head in both.items()}


def _from_features(context: Context, method: Method, config: RunConfig, protocol: Protocol, split: Split) -> Answers:
    backbone, source = context.start.backbone, context.pool(protocol.fit_part)
    centre = {name: tensor.clone() for name, tensor in backbone.fitted_state().items()}
    unchanged = _versions(backbone)
    store = source.unlabelled_features(split.fit)
    engine = Engine(backbone, context.start.device, context.start.precision)
    reset_peak()
    start = time.perf_counter()
    try:
        prepared = context.prepared(config, split.names, engine, named=protocol.change == "unknown")
        fitted = fit(prepared, store, config, context.quiet, hints=_hints(method, split))
        test = take(context.test.features, split.test)
        singles = list(feature_rows(test, 1))
        alone = _ask_alone(engine, protocol, len(singles), lambda i: fitted.model.logits(singles[i]))
        logits = _transductive(fitted, protocol) or _joined([fitted.model.logits(rows) for rows in feature_rows(test, BATCH)])
        timing = _timing(engine, start)
        health = health_of(fitted, store, context.quiet, _hints(method, split))
        none = {} if health is None else scores_of(context, protocol, split, fitted, store, logits["logits"], health.temperature)
    finally:
        copy_into(dict(backbone.fitted_state()), centre)
    if _versions(backbone) != unchanged:
        raise RuleBroken("a method without training changed the backbone that all methods share")
    compare_alone(alone, logits["logits"], TOLERANCE)
    # What a run by itself would have encoded.
    engine.no_grad_forwards += len(split.test) + (0 if protocol.setting == "online" else len(split.fit))
    shared = {"features": "shared", "seconds_per_shared_forward": round(max(source.seconds_per_image, context.test.seconds_per_image), 5)}
    return Answers(logits, _cost(context, engine, config), timing | shared, health, none)


def _from_stream(context: Context, method: Method, config: RunConfig, protocol: Protocol, split: Split) -> Answers:
    """Answers at arrival: a method gets one image, answers it, and only then gets the next.

    Nothing is known of the stream before it begins, so a backbone with a centre stays as it is for zero-shot, and there is no
    temperature: it would be found on all images.
    """
    engine = Engine(context.start.backbone, context.start.device, context.start.precision)
    task = context.prepared(config, split.names, engine).task
    assert isinstance(task, SolverTask)
    assert isinstance(task.solver, OnlineSolver)
    x = task.rows(take(context.test.features, split.test))
    assert isinstance(x, Tensor)
    reset_peak()
    start = time.perf_counter()
    solver = task.solver.begin(prototypes=task.prototypes.to(task.place), logit_scale=engine.backbone.logit_scale)
    # One row a call: there is nothing to look ahead to.
    answers = torch.stack([next(solver.stream(row)) for row in x.split(1)])
    engine.no_grad_forwards += len(split.test)
    shared = {"features": "shared", "seconds_per_shared_forward": round(context.test.seconds_per_image, 5)}
    logits = answers.clamp_min(torch.finfo(answers.dtype).tiny).log().float().cpu().numpy()
    return Answers({"logits": logits}, _cost(context, engine, config), _timing(engine, start) | shared)


def _from_pixels(context: Context, method: Method, config: RunConfig, protocol: Protocol, split: Split) -> Answers:
    source = context.pool(protocol.fit_part)
    engine = context.start.fresh_engine()
    fit_images, test_images = source.images(split.fit), context.test.images(split.test, sealed=True)
    reset_peak()
    start = time.perf_counter()
    with _no_cached_features():
        prepared = context.prepared(config, split.names, engine, named=protocol.change == "unknown")
        fitted = fit(prepared, fit_images, config, context.console, hints=_hints(method, split))
        test_images.open()
        alone = _ask_alone(engine, protocol, len(split.test), lambda i: predict_store(fitted.model, test_images.only(i), context.quiet))
        logits = {name: value.numpy() for name, value in predict_store(fitted.model, test_images, context.console).items()}
    compare_alone(alone, logits["logits"], tolerance_of(engine.device, engine.precision))
    cost = _cost(context, engine, config if fitted.untrained is None else None)
    timing = _timing(engine, start) | {"features": "own"}
    health = health_of(fitted, fit_images, context.quiet, _hints(method, split))
    none = {} if health is None else scores_of(context, protocol, split, fitted, fit_images, logits["logits"], health.temperature)
    return Answers(logits, cost, timing, health, none)


def _from_views(context: Context, method: Method, config: RunConfig, protocol: Protocol, split: Split) -> Answers:
    """Many views of an image: encoded once for all methods that look at the same ones, and kept, so that an interrupted row goes on."""
    engine, test_images = context.start.fresh_engine(), context.test.images(split.test, sealed=True)
    encoder = FeatureEncoder(engine, context.test.limits.short_side)
    prepared = context.prepared(config, split.names, engine)
    # Such a method learns nothing from images: fitting shows it one and tells it nothing.
    fitted = fit(prepared, context.pool(protocol.fit_part).images(split.fit[:1]), config, context.quiet, hints=_hints(method, split))
    test_images.open()
    assert isinstance(prepared.task, ViewTask)
    plan = prepared.task.inference
    with (
        closing(encoder.stream_inference(test_images, plan, context.quiet)) as views,
        context.console.progress(len(split.test), "encode views") as bar,
    ):
        for positions, _ in views:
            bar.update(len(positions))
    reset_peak()
    start = time.perf_counter()
    alone = _ask_alone(engine, protocol, len(split.test), lambda i: predict_store(fitted.model, test_images.only(i), context.quiet, None, encoder))
    logits = {name: value.numpy() for name, value in predict_store(fitted.model, test_images, context.quiet, None, encoder).items()}
    # Views that fit into no cache were encoded twice.
    compare_alone(alone, logits["logits"], tolerance_of(engine.device, engine.precision))
    # What a run by itself would have encoded.
    engine.no_grad_forwards = len(split.fit) + len(split.test) * (1 + plan.count)
    shared = {"features": "shared", "seconds_per_shared_forward": round(context.test.seconds_per_image, 5)}
    return Answers(logits, _cost(context, engine, config), _timing(engine, start) | shared)


@contextmanager
def _no_cached_features() -> Iterator[None]:
    """Work is counted and timed as in a first run, whatever was run before."""
    before = os.environ.get(LIMIT_VARIABLE)
    os.environ[LIMIT_VARIABLE] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[LIMIT_VARIABLE]
        else:
            os.environ[LIMIT_VARIABLE] = before


def _hints(method: Method, split: Split) -> Hints | None:
    """What a person would have labelled: given to every method that adapts."""
    if not split.hinted or not method.adapts:
        return None
    return Hints(torch.tensor(split.hinted), torch.tensor(split.hint_labels))


def _ask_alone(engine: Engine, protocol: Protocol, count: int, ask: Callable[[int], dict[str, Tensor]]) -> dict[int, np.ndarray]:
    """Logits (C,) of a few images, each asked alone, by position; nothing is counted. Only where others may not matter."""
    if protocol.setting != "inductive":
        return {}
    counts, seconds = engine.counts, dict(engine.stopwatch.seconds)
    found = {i: ask(i)["logits"].numpy()[0] for i in sorted({round(k) for k in np.linspace(0, count - 1, ALONE)})}
    engine.counts, engine.stopwatch.seconds = counts, seconds
    return found


def tolerance_of(device: torch.device, precision: Precision) -> float:
    """How far a probability may move with the size of the batch by rounding."""
    return TOLERANCE if device.type == "cpu" and precision.dtype is torch.float32 else TOLERANCE_ROUNDED


def compare_alone(alone: Mapping[int, np.ndarray], logits: np.ndarray, tolerance: float) -> None:
    """Hold answers against those that were given alone.

    A class can change without being noticed only where the two best of the sharpened probabilities are within twice the tolerance.

    Args:
        alone: Logits (C,) by position.
        logits: Of all images, (N, C).
        tolerance: How far a probability may move.

    Raises:
        RuleBroken: One has moved further.
    """
    for i, before in alone.items():
        pair = np.stack([before, logits[i]])
        spread, size = np.ptp(pair, axis=1).max(), np.abs(pair).max()
        first, second = softmax(pair * (max(1.0, min(SHARP / spread, FLOAT32_ROOM / size)) if spread else 1.0))
        if np.abs(first - second).max() > tolerance:
            raise RuleBroken("an answer changed with the other test images, or with having been asked before, which an inductive protocol forbids")


def _transductive(fitted: Fitted, protocol: Protocol) -> dict[str, np.ndarray] | None:
    """Answers of a solver for the images it was fitted to, which may rest on more than it keeps for new images."""
    task = fitted.model.task
    if protocol.setting != "transductive" or not isinstance(task, SolverTask):
        return None
    return {"logits": task.target_log_proba.float().cpu().numpy()}


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def _versions(backbone: Backbone) -> list[int]:
    """Counts of in-place changes of every tensor but those that fitting may set."""
    own = {id(tensor) for tensor in backbone.fitted_state().values()}
    return [version(tensor) for tensor in (*backbone.parameters(), *backbone.buffers()) if id(tensor) not in own]


def _cost(context: Context, engine: Engine, config: RunConfig | None) -> dict[str, Any]:
    """What was counted; without a configuration of a run that was kept from training."""
    tower = engine.tower_flops = engine.tower_flops or TowerFlops(context.start.flops, 0)
    spared = {"spared_prefixes": engine.spared_prefixes, "flops_of_prefix": tower.prefix} if engine.spared_prefixes else {}
    return {
        "no_grad_forwards": engine.no_grad_forwards,
        "grad_forwards": engine.grad_forwards,
        "flops_per_forward": tower.forward,
        "flops_with_gradient": tower.with_gradient,
        "tower_flops": engine.flops,
        **spared,
        "epochs": config.training.epochs if config is not None and config.entry.trains else 0,
    }


def _timing(engine: Engine, start: float) -> dict[str, Any]:
    return {
        "seconds": round(time.perf_counter() - start, 4),
        "stages": {name: round(seconds, 4) for name, seconds in engine.stopwatch.seconds.items()},
        "peak_megabytes": peak_megabytes(),
    }
