"""One sentence on whether to trust a run, from label-free numbers only. How often it is right is measured in docs/report.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finelens.evaluation.signals import Signals
from finelens.evaluation.weak_start import HARDLY, REMEDY, Start

Level = Literal["improved", "unclear", "do not use"]

# One set of thresholds for all data sets.
KEPT = 0.75
KEPT_WITHOUT_DESCRIPTIONS = 0.85
LOST = 0.55
TEXTS_AGREE = 0.65
# Share of zero-shot's spread over the classes below which predictions have collapsed.
COLLAPSE = 0.6


@dataclass(frozen=True)
class Reason:
    """One thing that speaks for or against a run.

    Attributes:
        kind: ``good``, ``bad`` or ``note``.
        text: One sentence.
    """

    kind: Literal["good", "bad", "note"]
    text: str


@dataclass(frozen=True)
class Verdict:
    """What the numbers say.

    Attributes:
        level: The answer.
        sentence: The answer with its main reason.
        reasons: All reasons, the decisive first.
    """

    level: Level
    sentence: str
    reasons: tuple[Reason, ...]


def verdict(signals: Signals, alarms: Sequence[str] = (), *, labelled: bool = False) -> Verdict:
    """Judge a run.

    Adaptation is believed where it leaves alone what the starting model was sure of, and where that model is worth keeping: its two kinds of text
    agree. It is not where it overturns the sure answers, or where a few classes have swallowed the others.

    Args:
        signals: Numbers of the run.
        alarms: Warnings of the run, in sentences.
        labelled: Whether a person's labels took part, as hints or as a support set.
    """
    # A person's answers are something to build on, whatever the model knew.
    start = None if labelled else signals.start
    collapsed = signals.classes > 2 and signals.spread < COLLAPSE * signals.spread_zero_shot
    reasons = (*_alarms(alarms), *_collapse(signals, collapsed), _kept(signals), *_start(start), *_texts(signals), *_notes(signals))
    if signals.agreement == 1:
        return Verdict("unclear", "Nothing changed: these are the answers of the unadapted model, and nothing tells how good they are.", reasons[1:])
    if collapsed or alarms:
        return Verdict("do not use", "Do not use: the predictions have collapsed onto few classes; prefer finelens zero-shot.", reasons)
    if signals.kept < LOST:
        return Verdict(
            "do not use",
            f"Do not use: only {signals.kept:.0%} of the images that the unadapted model was surest of keep their class; "
            "check the class names and descriptions, or prefer finelens zero-shot.",
            reasons,
        )
    if start is not None and start.weak:
        return Verdict("unclear", f"Unclear: {HARDLY}, so adaptation had little to build on; label a few images and run finelens evaluate.", reasons)
    if signals.text_agreement is not None and signals.text_agreement < TEXTS_AGREE:
        return Verdict(
            "unclear",
            f"Unclear: templates and descriptions agree on only {signals.text_agreement:.0%} of the images, so the starting model hardly knows these "
            "classes and adaptation had little to build on; label a few images and run finelens evaluate.",
            reasons,
        )
    if signals.kept < (KEPT_WITHOUT_DESCRIPTIONS if signals.text_agreement is None else KEPT):
        return Verdict(
            "unclear",
            f"Unclear: {1 - signals.kept:.0%} of the images that the unadapted model was surest of changed class; look at the boldest changes below.",
            reasons,
        )
    return Verdict(
        "improved",
        f"Probably improved: {1 - signals.agreement:.0%} of the images changed class, while {signals.kept:.0%} of those that the unadapted model was "
        "surest of kept theirs.",
        reasons,
    )


def nothing_trained(signals: Signals, reason: str) -> Verdict:
    """Of a run that was kept from training (``training.guard``).

    Args:
        signals: Numbers of the run.
        reason: Why, a sentence without its end.
    """
    reasons = (Reason("bad", f"{_sentence(reason)}."), Reason("note", f"{REMEDY}."), *_texts(signals), *_notes(signals))
    return Verdict("unclear", f"Nothing was trained, these are the answers of zero-shot: {HARDLY}.", reasons)


def _alarms(alarms: Sequence[str]) -> list[Reason]:
    return [Reason("bad", f"{_sentence(alarm)}.") for alarm in alarms]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _collapse(signals: Signals, collapsed: bool) -> list[Reason]:
    if not collapsed:
        return []
    now, before = (f"{share * signals.classes:.1f}" for share in (signals.spread, signals.spread_zero_shot))
    return [Reason("bad", f"The predictions are as varied as {now} classes of equal size would be, zero-shot's as {before}.")]


def _kept(signals: Signals) -> Reason:
    kind: Literal["good", "bad", "note"] = "good" if signals.kept >= KEPT else "bad" if signals.kept < LOST else "note"
    return Reason(kind, f"Of the half of the images that the unadapted model is surest of, {signals.kept:.0%} keep their class.")


def _texts(signals: Signals) -> list[Reason]:
    if signals.text_agreement is None:
        return [Reason("note", "Without descriptions there is no second opinion on what the starting model knows.")]
    kind: Literal["good", "bad"] = "good" if signals.text_agreement >= TEXTS_AGREE else "bad"
    return [Reason(kind, f"Templates and descriptions name the same class on {signals.text_agreement:.0%} of the images.")]


def _start(start: Start | None) -> list[Reason]:
    if start is None:
        return []
    return [Reason("bad" if start.weak else "note", f"What the unadapted model knows: {start.account}.")]


def _notes(signals: Signals) -> list[Reason]:
    return [
        Reason("note", f"{signals.unused} of {signals.classes} classes are never predicted (zero-shot: {signals.unused_zero_shot})."),
        Reason("note", f"The largest class holds {signals.largest:.0%} of the images (zero-shot: {signals.largest_zero_shot:.0%})."),
    ]
