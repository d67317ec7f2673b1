"""One sentence on whether to trust a run, without labels where there are none. How often it is right is measured in docs/report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from finelens.evaluation.answered import Answered
from finelens.evaluation.name_sense import LEAST_CLASSES, LEAST_SENSE, NO_SENSE, NONSENSE
from finelens.evaluation.none_of_these import MANY, SOME
from finelens.evaluation.prequential import LEAST_TESTS
from finelens.evaluation.signals import Signals
from finelens.evaluation.weak_start import FEW_IMAGES, HARDLY, REMEDY, Start

Level = Literal["improved", "cannot judge", "unclear", "do not use"]
Kind = Literal["good", "bad", "note"]

# One set of thresholds for all data sets.
KEPT = 0.75
KEPT_WITHOUT_DESCRIPTIONS = 0.85
LOST = 0.55
TEXTS_AGREE = 0.65
# Share of zero-shot's spread over the classes below which predictions have collapsed.
COLLAPSE = 0.6
# One class holds far more than its share from this share of the images on, and from so many times an even share where classes are few.
DOMINANT, TIMES_EVEN = 0.4, 2.0

# Share of the photographs of classes that nobody has named from which on a run is no improvement, whatever else is said.
UNNAMED = 0.2

# Photographs a class below which there are too few to judge.
A_CLASS = 2

JUDGE_BY = f"a descriptions file, {LEAST_TESTS} photographs named by you, or labels"


@dataclass(frozen=True)
class Reason:
    """One thing that speaks for or against a run.

    Attributes:
        kind: ``good``, ``bad`` or ``note``.
        text: One sentence.
        code: What it is about, one word for programs.
    """

    kind: Kind
    text: str
    code: str


@dataclass(frozen=True)
class Verdict:
    """What the numbers say.

    Attributes:
        level: The answer.
        sentence: The main reason.
        reasons: All reasons, the decisive first.
        measured: Whether labels decided.
    """

    level: Level
    sentence: str
    reasons: tuple[Reason, ...]
    measured: bool = False

    @property
    def line(self) -> str:
        """One line for a terminal."""
        return f"{self.level}. {self.sentence}"

    @property
    def shown(self) -> bool:
        """Whether labels or a person's answers have shown it; else it is what signs without them say."""
        return self.measured or bool(self.reasons and self.reasons[0].code == "answers")


def verdict(
    signals: Signals,
    alarms: Sequence[str] = (),
    *,
    labelled: bool = False,
    trains: bool = False,
    answered: Answered | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> Verdict:
    """Judge a run.

    Adaptation is believed where it leaves alone what the starting model was sure of, and where that model is worth keeping by a second opinion: its
    two kinds of text agree, a person named a few photographs, or another encoder took part. Without one nothing tells a good start from a bad one.
    Where a person's answers tested the model, and chance does not explain by how much it is better or worse than the unadapted one, they decide;
    labels go before all of that.

    Args:
        signals: Numbers of the run.
        alarms: Warnings of the run, in sentences.
        labelled: Whether a person's labels took part, as hints or as a support set.
        trains: Whether the method trains on answers of its own.
        answered: What a person's answers said; None without.
        evaluation: What labels said (``evaluation.metrics.evaluate_predictions``); None without labels.
    """
    # One or two names are no opinion on a whole folder, and "none of these" says nothing of what the model knows of the classes.
    enough = labelled and (answered is None or answered.named >= LEAST_TESTS)
    free = _unnamed(_by_answers(_without_labels(signals, alarms, labelled=labelled, heard=enough, trains=trains), answered), answered)
    return free if evaluation is None else _with_labels(free, evaluation)


def _without_labels(signals: Signals, alarms: Sequence[str], *, labelled: bool, heard: bool, trains: bool) -> Verdict:
    # A person's answers are something to build on, whatever the model knew.
    start = None if labelled else signals.start
    collapsed = signals.classes > 2 and signals.spread < COLLAPSE * signals.spread_zero_shot
    enough = max(FEW_IMAGES, A_CLASS * signals.classes)
    senseless, dominant, few = _senseless(signals), _dominant(signals), signals.images < enough
    second = signals.text_agreement is not None or heard or signals.further_encoders > 0
    reasons = (
        *(Reason("bad", f"{_sentence(alarm)}.", "alarm") for alarm in alarms),
        *_collapse(signals, collapsed),
        *([Reason("bad", f"{_sentence(NONSENSE)}: check spelling and language, or describe the classes.", "names")] if senseless else []),
        *([Reason("note", f"Below {enough} photographs these numbers say little; there are {signals.images}.", "few")] if few else []),
        *([dominant] if dominant else []),
        _kept(signals, labelled),
        *_texts(signals, second),
        *_start(start, trains),
        *_strangers(signals),
        *_notes(signals),
    )

    def so(level: Level, sentence: str) -> Verdict:
        return Verdict(level, _sentence(sentence), reasons)

    if senseless and signals.text_agreement is None and not labelled:
        if (signals.name_sense or 0.0) < NO_SENSE:
            return so("do not use", f"{NONSENSE}, so the answers mean nothing; check their spelling and language.")
        return so("unclear", f"{NONSENSE}, or hardly more; check their spelling and language, or describe the classes.")
    if signals.agreement == 1:
        rest = tuple(reason for reason in reasons if reason.code != "kept")
        these = "but for what a person named, these" if labelled else "these"
        return Verdict("cannot judge", _sentence(f"{these} are the answers of the unadapted model, and nothing tells how good they are."), rest)
    if collapsed or alarms:
        return so("do not use", "nearly all photographs went to a few classes; the unadapted model (finelens zero-shot) is the safer choice.")
    if few:
        needed = f"{enough} would do" if second else f"it takes {enough}, and a second opinion: {JUDGE_BY}"
        return so("cannot judge", f"{signals.images} photographs are too few to judge {signals.classes} classes without labels; {needed}.")
    if not labelled and signals.weak_start:
        return so("unclear", f"{HARDLY}, so there was little to build on; name some photographs, or measure with labels.")
    # Where the starting model knows little, or photographs are few, what it was surest of is no measure.
    if signals.kept < LOST and labelled and signals.weak_start:
        return so("unclear", f"{HARDLY}, so what it said is no measure of what was learnt from a person; name more of them, or measure.")
    if signals.kept < LOST:
        return so(
            "do not use",
            f"it overturned {1 - signals.kept:.0%} of the answers that the unadapted model was surest of; check class names and descriptions, "
            "or take the unadapted model (finelens zero-shot).",
        )
    if dominant:
        return so("unclear", f"one class holds {signals.largest:.0%} of the photographs; look whether that can be true.")
    if signals.text_agreement is not None and signals.text_agreement < TEXTS_AGREE:
        return so(
            "unclear",
            f"class names alone and descriptions agree on only {signals.text_agreement:.0%} of the photographs, so the starting model hardly knows "
            "these classes; name some photographs, or measure with labels.",
        )
    if not second:
        return so("cannot judge", f"there is no second opinion on what the starting model knows of these classes; {JUDGE_BY} would give one.")
    if signals.kept < (KEPT_WITHOUT_DESCRIPTIONS if signals.text_agreement is None else KEPT):
        return so("unclear", f"{1 - signals.kept:.0%} of the answers that the unadapted model was surest of changed; look at the boldest changes.")
    return so(
        "improved",
        f"probably better than the unadapted model: {1 - signals.agreement:.0%} of the answers changed{_alone(labelled)}, and {signals.kept:.0%} of "
        "those it was surest of did not.",
    )


def _by_answers(free: Verdict, answered: Answered | None) -> Verdict:
    """What a person's answers say, where they tested the model; what was said without them is kept among the reasons."""
    if answered is None or answered.gain is None or answered.gain_low is None or answered.gain_high is None:
        return free
    gain = f"{100 * answered.gain:+.0f} points ({100 * answered.gain_low:+.0f} to {100 * answered.gain_high:+.0f}, 90 % interval)"
    said = f"By the answers of a person about {answered.estimate:.0%} are right{answered.caveat}; against the unadapted model that is {gain}"
    level: Level
    kind: Kind
    if answered.gain_low > 0:
        level, kind, why = "improved", "good", "a difference that chance does not explain"
    elif answered.gain_high < 0:
        level, kind, why = "do not use", "bad", "a loss; take the unadapted model (finelens zero-shot)"
    else:
        # An interval that holds 0 is no sign against a run either: docs/report.md says of how many such runs were better.
        rest = "the interval holds 0, so by themselves they do not decide: the verdict goes by the other signs, and more answers would tell"
        return replace(free, reasons=(*free.reasons, Reason("note", f"{said}; {rest}.", "answers")))
    others = (Reason("note", f"Without the answers: {free.line}", "without-answers"), *free.reasons)
    return Verdict(level, f"{said}: {why}.", (Reason(kind, f"{said}.", "answers"), *others))


def _unnamed(free: Verdict, answered: Answered | None) -> Verdict:
    """What the answers say of classes that nobody has named, where they are the class list."""
    if answered is None or not answered.unnamed:
        return free
    share = f"About {answered.unnamed:.0%} of the photographs are probably of classes that nobody has named"
    said = f"{share}, by how many answers are the only one of their class"
    if answered.unnamed < UNNAMED:
        return replace(free, reasons=(*free.reasons, Reason("note", f"{said}.", "unnamed")))
    reasons = (Reason("bad", f"{said}.", "unnamed"), *free.reasons)
    if free.level != "improved":
        return replace(free, reasons=reasons)
    return Verdict("unclear", f"{said}, so no answer about these can be right; name more photographs, or give a class list.", reasons)


def _with_labels(free: Verdict, evaluation: Mapping[str, Any]) -> Verdict:
    """What labels say; what was said without them is kept among the reasons."""
    low, high = evaluation["difference_interval"]
    right, before = float(evaluation["accuracy"]), float(evaluation["zero_shot_accuracy"])
    described = evaluation.get("description_ensemble_accuracy")
    best = max(before, before if described is None else float(described))
    level: Level = "improved" if low > 0 and right >= best else "do not use" if high < 0 else "unclear"
    with_texts = "" if described is None else f", with descriptions {described:.1%}"
    said = f"Measured on {evaluation['n']} labelled photographs: {right:.1%} right, the unadapted model {before:.1%}{with_texts}"
    why = {
        "improved": "a difference that chance does not explain",
        "do not use": "a loss; take the unadapted model (finelens zero-shot)",
        "unclear": _by_chance(right, before, best, int(evaluation["n"])),
    }[level]
    interval = f"{100 * low:+.1f} to {100 * high:+.1f} points"
    kind: Kind = "good" if level == "improved" else "bad"
    measured = Reason(kind, f"Against the unadapted model with class names alone the difference is {interval} (95 % interval).", "measured")
    before_labels = Reason("note", f"Without the labels the verdict was: {free.level}.", "without-labels")
    # Labels are more than a second opinion.
    rest = (reason for reason in free.reasons if reason.code != "no-second-opinion")
    return Verdict(level, f"{said}: {why}.", (measured, before_labels, *rest), measured=True)


def _by_chance(right: float, before: float, best: float, n: int) -> str:
    """Why labels show no difference to the unadapted model."""
    if right < best:
        return "a loss, though chance may explain it"
    return f"more are right, but on {n} photographs that may be chance" if right > before else "no gain"


def nothing_trained(signals: Signals, reason: str, evaluation: Mapping[str, Any] | None = None) -> Verdict:
    """Of a run that was kept from training (``training.guard``).

    Args:
        signals: Numbers of the run.
        reason: Why, a sentence without its end.
        evaluation: What labels said; None without labels.
    """
    account = Reason("bad", f"{_sentence(reason)}.", "start")
    second = signals.text_agreement is not None or evaluation is not None
    reasons = (account, Reason("note", f"{_sentence(REMEDY)}.", "remedy"), *_texts(signals, second), *_notes(signals))
    if evaluation is not None:
        said = f"Nothing was trained; {evaluation['accuracy']:.1%} of {evaluation['n']} labelled photographs are right."
        return Verdict("unclear", said, reasons, measured=True)
    return Verdict("unclear", f"Nothing was trained, these are the answers of the unadapted model (zero-shot): {HARDLY}.", reasons)


def _alone(labelled: bool) -> str:
    """What belongs to a share of changed answers where a person's may stand in their place."""
    return ", by the model alone and not by what a person named" if labelled else ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _senseless(signals: Signals) -> bool:
    return signals.name_sense is not None and signals.classes >= LEAST_CLASSES and signals.name_sense < LEAST_SENSE


def _dominant(signals: Signals) -> Reason | None:
    if signals.classes < 3 or signals.largest < max(DOMINANT, TIMES_EVEN / signals.classes):
        return None
    even = 1 / signals.classes
    said = f"One of {signals.classes} classes holds {signals.largest:.0%} of the photographs; an even share would be {even:.0%}."
    return Reason("bad", said, "dominant")


def _collapse(signals: Signals, collapsed: bool) -> list[Reason]:
    if not collapsed:
        return []
    now, before = (f"{share * signals.classes:.1f}" for share in (signals.spread, signals.spread_zero_shot))
    return [Reason("bad", f"The answers are as varied as {now} classes of equal size would be, the unadapted model's as {before}.", "collapse")]


def _kept(signals: Signals, labelled: bool) -> Reason:
    kind: Kind = "good" if signals.kept >= KEPT else "bad" if signals.kept < LOST else "note"
    return Reason(
        kind, f"Of the half of the photographs that the unadapted model is surest of, {signals.kept:.0%} keep their class{_alone(labelled)}.", "kept"
    )


def _texts(signals: Signals, second: bool) -> list[Reason]:
    if signals.text_agreement is None:
        lack = f"There is no second opinion on what the starting model knows; {JUDGE_BY} would give one."
        return [] if second else [Reason("note", lack, "no-second-opinion")]
    kind: Kind = "good" if signals.text_agreement >= TEXTS_AGREE else "bad"
    return [Reason(kind, f"Class names alone and descriptions name the same class on {signals.text_agreement:.0%} of the photographs.", "texts")]


def _start(start: Start | None, trains: bool) -> list[Reason]:
    if start is None:
        return []
    account = start.account if trains else start.told
    return [Reason("bad" if start.weak else "note", f"What the unadapted model knows: {account}.", "start")]


def _strangers(signals: Signals) -> list[Reason]:
    share = signals.none_of_these
    if share is None or share < SOME:
        return []
    said = f"{share:.0%} of the photographs probably belong to none of the classes"
    if signals.weak_start:
        return [Reason("note", f"{said}, by a model that hardly knows these classes: that says little.", "none-of-these")]
    if share < MANY:
        return [Reason("note", f"{said}.", "none-of-these")]
    return [Reason("bad", f"{said}: check whether the class list fits these photographs, or add the classes that it lacks.", "none-of-these")]


def _notes(signals: Signals) -> list[Reason]:
    unused = f"{signals.unused} of {signals.classes} classes are never predicted (unadapted model: {signals.unused_zero_shot})."
    largest = f"The largest class holds {signals.largest:.0%} of the photographs (unadapted model: {signals.largest_zero_shot:.0%})."
    return [Reason("note", unused, "unused"), Reason("note", largest, "largest")]
