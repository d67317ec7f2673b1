"""``--method auto`` in a run: looks at its inputs, asks :func:`finelens.methods.auto.choose_method` and puts the answer in the place of ``auto``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from finelens.core.console import Console
from finelens.core.options import from_mapping
from finelens.errors import UserError
from finelens.evaluation.weak_start import HARDLY
from finelens.feature_store.encoder import target_features
from finelens.methods.auto import AUTO, Facts, choose_method
from finelens.methods.registry import find_method
from finelens.protocol import Hints, Loaded
from finelens.runs.config import RunConfig
from finelens.runs.prepare import Prepared, start_from, unadapted_logits, with_method
from finelens.training.config import TrainingConfig
from finelens.training.estimate import estimate

# What the inputs are read with until the choice is made: it takes photographs, features and hints, and needs none of them in particular.
PROVISIONAL = "stata"
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


def starting_method(method: str, options: Mapping[str, Mapping[str, Any]], minutes: float | None) -> str:
    """The method to read the inputs with: the user's, or a provisional one for ``auto``.

    Raises:
        UserError: Options that belong to a method beside ``auto``, or a time budget beside a method.
    """
    if method != AUTO:
        if minutes is not None:
            raise UserError(f"--minutes has an effect with --method auto only, and the method is {method}; leave it out")
        return method
    if minutes is not None and not 0 < minutes < math.inf:
        raise UserError(f"--minutes must be above 0 and finite, got {minutes:g}")
    own = [f"method.{key}" for key in options.get("method", {})] + [f"training.{key}" for key in options.get("training", {}) if key != "precision"]
    if own:
        raise UserError(f"{own[0]} is an option of one method, and --method auto has yet to choose one; name the --method or leave the option out")
    return PROVISIONAL


def choose(prepared: Prepared, loaded: Loaded, config: RunConfig, hints: Hints | None, minutes: float | None, console: Console) -> Choice:
    """Choose the method of a run and say why.

    The images are encoded for it, once: the run finds their features in the cache.

    Args:
        prepared: Made with the provisional method.
        loaded: The images.
        config: The configuration with the provisional method.
        hints: What the user gave.
        minutes: Time that training may take.
        console: Told the choice.
    """
    engine = prepared.engine
    features = target_features(engine, loaded.store, prepared.limits.short_side, console)
    first, start = unadapted_logits(prepared, features)[0], start_from(prepared, features)
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
        weak_start=f"{HARDLY}: {start.account}" if start.weak else None,
    )
    if facts.against_training is None:
        trained = _with_method(prepared, config, TRAINED, "")
        expected = estimate(trained.prepared.task, engine, len(loaded.store), trained.config.training.epochs)
        facts = replace(facts, training=expected.seconds / 60)
    name, reason = choose_method(facts)
    console.say(f"method: {name}, because {reason}")
    return _with_method(prepared, config, name, reason)


def _with_method(prepared: Prepared, config: RunConfig, name: str, reason: str) -> Choice:
    method = find_method(name)
    training = from_mapping(TrainingConfig, {**method.training_defaults, "precision": config.training.precision}, "training")
    changed = replace(config, method=name, training=training, method_options=None)
    return Choice(changed, with_method(prepared, changed), reason)
