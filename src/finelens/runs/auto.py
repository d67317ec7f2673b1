"""What a run does where the user leaves a choice: the method (``--method auto``), or what to do with a time budget (``--minutes``).

It looks at its inputs, asks :mod:`finelens.methods.auto`, and puts the answer in the place of what was asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from finelens.core.console import Console, duration
from finelens.core.options import from_mapping
from finelens.evaluation.weak_start import HARDLY
from finelens.feature_store.encoder import target_features
from finelens.methods.auto import SOLVED, TAUGHT, Facts, choose_method, lessons_within, minutes_for
from finelens.methods.consensus_tuned import LESSONS, of_teacher
from finelens.methods.registry import find_method
from finelens.protocol import Hints, Loaded
from finelens.runs.config import RunConfig
from finelens.runs.prepare import Prepared, start_from, unadapted_logits, with_method
from finelens.training.config import TrainingConfig
from finelens.training.estimate import estimate

TRAINED = "microclip"


@dataclass(frozen=True)
class Choice:
    """A method that was chosen, and a run changed to it.

    Attributes:
        config: The configuration, as if the user had named the method.
        prepared: The same backbone and texts with that method's task.
        reason: Why, one line.
    """

    config: RunConfig
    prepared: Prepared
    reason: str


def choose(prepared: Prepared, loaded: Loaded, config: RunConfig, hints: Hints | None, minutes: float | None, console: Console) -> Choice:
    """Choose the method of a run, or what it does with its time budget, and say why.

    The images are encoded for it, once: the run finds their features in the cache.

    Args:
        prepared: Made with the method that :func:`starting_method` gave.
        loaded: The images.
        config: The configuration with that method.
        hints: What the user gave.
        minutes: Time that training may take.
        console: Told the choice.
    """
    engine = prepared.engine
    features = target_features(engine, loaded.store, prepared.limits.short_side, console)
    first, start = unadapted_logits(prepared, features)[0], start_from(prepared, features)
    weak = f"{HARDLY}: {start.account}" if start.weak else None
    if config.method == TAUGHT:
        assert minutes is not None
        return _with_budget(prepared, loaded, config, weak, minutes, console)
    known = None if hints is None else hints.label[hints.label >= 0]
    facts = Facts(
        images=len(loaded.store),
        classes=len(prepared.classes),
        named=len(set(first.argmax(1).tolist())),
        photographs=bool(loaded.pictures),
        descriptions=prepared.report is not None,
        hints=0 if hints is None else len(hints.index),
        hinted=0 if known is None else len(set(known.tolist())),
        budget=minutes,
        weak_start=weak,
    )
    if facts.against_training is None:
        trained = _with_method(prepared, config, TRAINED, "")
        expected = estimate(trained.prepared.task, engine, len(loaded.store), trained.config.training.epochs)
        facts = replace(facts, training=expected.seconds / 60)
    name, reason = choose_method(facts)
    console.say(f"method: {name}, because {reason}")
    return _with_method(prepared, config, name, reason)


def _with_budget(prepared: Prepared, loaded: Loaded, config: RunConfig, weak: str | None, minutes: float, console: Console) -> Choice:
    """As many lessons of the method as there is time for; the solver alone where that is none, or where the start is a reason against training.

    Args:
        prepared: Made with the method that trains.
        loaded: The images.
        config: The configuration with that method.
        weak: Why training on answers of its own is not to be trusted here; None where it is.
        minutes: Time that training may take.
        console: Told the choice.
    """
    against = weak
    if against is None:
        lesson = config.method_options.lesson
        one = with_method(prepared, _with_epochs(config, lesson))
        seconds = estimate(one.task, prepared.engine, len(loaded.store), lesson).seconds
        lessons = lessons_within(60 * minutes, seconds, LESSONS)
        if lessons:
            reason = f"{minutes:g} minutes are enough for {lessons} of its {LESSONS} lessons, of about {duration(seconds, rough=True)} each"
            console.say(f"method: {TAUGHT}, because {reason}")
            changed = _with_epochs(config, lessons * lesson)
            return Choice(changed, with_method(prepared, changed), reason)
        enough = f"--minutes {math.ceil(minutes_for(seconds))} would do"
        against = f"a lesson takes about {duration(seconds, rough=True)} ({enough})"
    reason = f"nothing is trained in the {minutes:g} minutes: {against}"
    console.say(f"method: {SOLVED}; {reason}")
    return _with_method(prepared, config, SOLVED, reason, of_teacher(config.method_options))


def _with_epochs(config: RunConfig, epochs: int) -> RunConfig:
    return replace(config, training=replace(config.training, epochs=epochs))


def _with_method(prepared: Prepared, config: RunConfig, name: str, reason: str, options: Any = None) -> Choice:
    method = find_method(name)
    training = from_mapping(TrainingConfig, {**method.training_defaults, "precision": config.training.precision}, "training")
    changed = replace(config, method=name, training=training, method_options=options)
    return Choice(changed, with_method(prepared, changed), reason)
