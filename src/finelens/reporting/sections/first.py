"""The first screen: what is in the folder, how sure that is, and what to do next, for a person who knows nothing of models."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from finelens.backbones.catalogue import RECOMMENDED
from finelens.backbones.registry import EMBEDDED
from finelens.evaluation.verdict import Reason, Verdict
from finelens.reporting import figures
from finelens.reporting.record import RunRecord
from finelens.reporting.review.sheet import adapt_command

SHOWN = 8
ASKED = 10
# Probabilities from which an answer is called sure, and half sure.
SURE, HALF_SURE = 0.8, 0.5
PROBABLY = "Probably improved"
BADGES = {"improved": "Improved", "cannot judge": "Cannot judge", "unclear": "Unclear", "do not use": "Do not use"}
# Reasons for those who want figures; they are folded away.
FIGURES = frozenset({"start", "unused", "largest", "remedy", "without-labels", "without-answers"})


@dataclass(frozen=True)
class Step:
    """Something to do: why, and the command."""

    why: str
    command: str


def build(record: RunRecord) -> dict[str, Any]:
    """The part above all others."""
    judged = record.verdict
    return {
        "badge": PROBABLY if judged.level == "improved" and not judged.shown else BADGES[judged.level],
        "reasons": [reason for reason in judged.reasons if not _folded(reason, judged)],
        "figures": [reason for reason in judged.reasons if _folded(reason, judged)],
        **_inside(record),
        "sure": _sure(record),
        **_estimated(record),
        "steps": steps(record, judged),
        "advice": RECOMMENDED if record.config.backbone == EMBEDDED else None,
    }


def _folded(reason: Reason, judged: Verdict) -> bool:
    """Whether a reason stands among the figures: also what the sentence says already, and an estimate where there is a measurement."""
    said = reason.code == "no-second-opinion" and judged.level == "cannot judge"
    return said or reason.code in FIGURES or (reason.code == "answers" and (judged.measured or reason.kind != "note"))


def _inside(record: RunRecord) -> dict[str, Any]:
    """The largest classes, and how many others there are with and without photographs."""
    counts = Counter(row.label for row in record.predicted)
    largest = counts.most_common(SHOWN)
    top = largest[0][1] if largest else 1
    return {
        "largest": [(name, count, figures.share_bar(count / top)) for name, count in largest],
        "others": len(counts) - len(largest),
        "empty": len(record.classes) - len(counts),
    }


def _estimated(record: RunRecord) -> dict[str, Any]:
    """How many are right, said without labels: one estimate, the most trustworthy of those that there are, and the others (docs/robustness.md)."""
    found, answered = record.estimates, record.answered
    if found is None:
        return {"estimate": None, "estimates": []}
    own = found.line(record.measured.signals.none_of_these)
    if answered is None or answered.estimate is None or answered.low is None or answered.high is None:
        return {"estimate": own, "estimates": found.others}
    by_answers = (
        f"about {answered.estimate:.0%} right by the answers of a person (90 % interval {answered.low:.0%} to {answered.high:.0%}){answered.caveat}"
    )
    return {"estimate": by_answers, "estimates": [own, *replace(found, answers=None).others]}


def _sure(record: RunRecord) -> list[tuple[str, int, Any]]:
    """Photographs by how probable their class is."""
    probabilities = [row.probability or 0.0 for row in record.predicted]
    sure = sum(p >= SURE for p in probabilities)
    guesses = sum(p < HALF_SURE for p in probabilities)
    total = max(len(probabilities), 1)
    parts = [
        (f"{SURE:.0%} and more", sure),
        (f"{HALF_SURE:.0%} to {SURE:.0%}", len(probabilities) - sure - guesses),
        (f"below {HALF_SURE:.0%}, guesses", guesses),
    ]
    return [(what, count, figures.share_bar(count / total)) for what, count in parts]


def steps(record: RunRecord, judged: Verdict) -> list[Step]:
    """What to do next, the most useful first."""
    run = shlex.quote(str(record.path))
    label = [
        Step(f"Name {ASKED} photographs yourself, those that say most about all others:", f"finelens review {run} --ask {ASKED} --serve"),
        Step("Then sort the folder again with your answers:", adapt_command(record, f"{record.path}/hints.csv")),
    ]
    measure = Step("Measure it, if some photographs have labels (columns path,label):", f"finelens report {run} --labels labels.csv")
    doubts = Step("Look through the answers that are most likely wrong:", f"finelens review {run} --serve")
    others = Step("Sort other photographs of the same kind:", f"finelens predict {run} NEW_PHOTOS --csv new.csv")
    if judged.level == "improved":
        return [doubts, others] if judged.measured else [doubts, measure, others]
    if not record.read or not record.config.photos:
        return [measure]
    return label if judged.measured else [*label, measure]
