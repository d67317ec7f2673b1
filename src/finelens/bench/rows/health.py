"""What a run would say about itself without labels: the figures that its report rests on, beside what labels say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from finelens.core.console import Console
from finelens.core.options import to_plain
from finelens.evaluation.collapse import pseudo_label_warning
from finelens.evaluation.signals import Signals, nearest_images, signals_of
from finelens.evaluation.verdict import Verdict, nothing_trained, verdict
from finelens.methods.method import ZERO_SHOT
from finelens.protocol import Hints, ImageStore
from finelens.runs.answered import answered
from finelens.runs.fit import Fitted, run_temperature
from finelens.runs.predict import predict_store


@dataclass(frozen=True)
class Health:
    """Found on the images that a method was fitted to.

    Attributes:
        temperature: What a run would divide the logits by.
        signals: Label-free numbers.
        verdict: What a report would open with.
        untrained: Why nothing was trained though the method trains; None where it was.
        probabilities: Calibrated posteriors of these images, (N, C), in store order.
        answered: Accuracy on them by the hints, each tested before it was learnt; None without hints or where the method tests none.
    """

    temperature: float
    signals: Signals
    verdict: Verdict
    untrained: str | None
    probabilities: Tensor
    answered: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For a line of results, which has the temperature among its measures."""
        signals = {name: round(value, 4) if isinstance(value, float) else value for name, value in to_plain(self.signals).items()}
        said = {} if self.untrained is None else {"untrained": self.untrained}
        return {"verdict": self.verdict.level, **said, "signals": signals}


def health_of(fitted: Fitted, store: ImageStore, quiet: Console, hints: Hints | None = None) -> Health | None:
    """Ask a fitted model about its own images, after cost and time were taken; None for many views, which would be encoded again.

    Args:
        fitted: From :func:`finelens.runs.fit.fit`.
        store: The images it was fitted to.
        quiet: Says nothing.
        hints: Labels that took part.
    """
    if fitted.model.entry.family == "views":
        return None
    logits = predict_store(fitted.model, store, quiet, features=fitted.features)["logits"]
    temperature = run_temperature(fitted, logits, nearest_images(fitted.looks, logits.shape[1]))
    first, described = fitted.zero_shot_logits, fitted.described_logits
    probabilities = (logits / temperature).softmax(1)
    signals = signals_of(probabilities, first.softmax(1), described)
    if fitted.untrained is not None and fitted.model.method == ZERO_SHOT:
        return Health(temperature, signals, nothing_trained(signals, fitted.untrained), fitted.untrained, probabilities)
    alarm = pseudo_label_warning(_counts(logits), _counts(first), fitted.model.class_names)
    judged = verdict(signals, [] if alarm is None else [alarm], labelled=hints is not None)
    tested = None if hints is None else answered(fitted, hints, store.ids, ()).estimate
    return Health(temperature, signals, judged, fitted.untrained, probabilities, tested)


def _counts(logits: Tensor) -> list[int]:
    found: list[int] = logits.argmax(1).bincount(minlength=logits.shape[1]).tolist()
    return found
