"""Accuracy by group, and shortcuts: whether a class is found by what stands beside it. Documentation: docs/groups.md.

Arguments as in :mod:`finelens.evaluation.metrics`; N labelled images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from finelens.evaluation.metrics import accuracy, auroc_fpr95, bootstrap_interval, class_mean_accuracy, ece

# Images of a group from which it can be the worst or the best; of a cell of a shortcut split from which its rate is shown.
LEAST = 10
DRAWS = 2000
ABSENT = frozenset({"no", "not", "none", "0", "false", "absent", "without", "off"})


def judge_groups(
    targets: ArrayLike, probabilities: ArrayLike, zero_shot: ArrayLike, values: Sequence[str], class_names: Sequence[str]
) -> dict[str, Any]:
    """One way to sort the images into groups.

    Args:
        targets: True class of each image, (N,).
        probabilities: (N, C).
        zero_shot: Class that the unadapted model gives, (N,).
        values: Group of each image, (N,); the empty text for none: such images are in no number but ``ungrouped``.
        class_names: C names.

    Returns:
        ``groups``, the least accurate first: ``group``, ``n``, ``accuracy``, ``accuracy_interval``, ``class_mean_accuracy``, ``zero_shot_accuracy``,
        ``auroc`` (mean over classes, one against the rest; None without both), ``ece``, ``confidence``, and ``difference`` to all other groups with
        ``difference_interval`` (None with one group); ``ungrouped``, images without a group. Of groups of ``LEAST`` images and more: ``worst``,
        ``best``, ``gap`` with ``gap_interval``, and ``gap_p``, how often groups drawn at random have a gap as large; None with fewer than two.
        ``shortcut``: see :func:`shortcut`; None unless there are two groups.
    """
    y, p, first, own = np.asarray(targets), np.asarray(probabilities, dtype=np.float64), np.asarray(zero_shot), np.array(values, dtype=object)
    inside = own != ""
    y, p, first, own = y[inside], p[inside], first[inside], own[inside]
    correct = p.argmax(axis=1) == y
    rng = np.random.default_rng(0)
    names = sorted(set(own.tolist()))
    groups = [_group(name, own == name, y, p, first, correct, len(class_names), rng) for name in names]
    groups.sort(key=lambda group: group["accuracy"])
    return {
        "groups": groups,
        "ungrouped": int((~inside).sum()),
        **_gap([group for group in groups if group["n"] >= LEAST], own, correct, rng),
        "shortcut": shortcut(y, p.argmax(axis=1), own, names, class_names, rng) if len(names) == 2 else None,
    }


def _group(
    name: str, at: np.ndarray, y: np.ndarray, p: np.ndarray, first: np.ndarray, correct: np.ndarray, classes: int, rng: np.random.Generator
) -> dict[str, Any]:
    predictions = p[at].argmax(axis=1)
    others = correct[~at]
    return {
        "group": name,
        "n": int(at.sum()),
        "accuracy": float(correct[at].mean()),
        "accuracy_interval": list(bootstrap_interval(correct[at])),
        "class_mean_accuracy": class_mean_accuracy(y[at], predictions, classes),
        "zero_shot_accuracy": accuracy(y[at], first[at]),
        "auroc": _auroc(y[at], p[at]),
        "ece": ece(y[at], p[at]),
        "confidence": float(p[at].max(axis=1).mean()),
        "difference": float(correct[at].mean() - others.mean()) if len(others) else None,
        "difference_interval": _difference(correct[at], others, rng) if len(others) else None,
    }


def _auroc(y: np.ndarray, p: np.ndarray) -> float | None:
    found = [auroc_fpr95(p[:, c], y == c)[0] for c in np.unique(y).tolist() if (y != c).any()]
    return float(np.mean(found)) if found else None


def _difference(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> list[float]:
    """Bootstrap interval of the difference of two rates: images of each side are drawn anew."""
    draws = [rng.binomial(len(side), side.mean(), size=DRAWS) / len(side) for side in (a, b)]
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    return [float(low), float(high)]


def _gap(groups: Sequence[dict[str, Any]], own: np.ndarray, correct: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    if len(groups) < 2:
        return dict.fromkeys(("worst", "best", "gap", "gap_interval", "gap_p"))
    worst, best = groups[0]["group"], groups[-1]["group"]
    gap = groups[-1]["accuracy"] - groups[0]["accuracy"]
    sizes = [group["n"] for group in groups]
    pool = correct[np.isin(own, [group["group"] for group in groups])].astype(float)
    ends = np.cumsum(sizes)[:-1]
    # The worst and the best were chosen by looking: so they are among random groups too.
    drawn = [np.ptp([part.mean() for part in np.split(rng.permutation(pool), ends)]) for _ in range(DRAWS)]
    p = (1 + sum(value >= gap - 1e-12 for value in drawn)) / (1 + DRAWS)
    return {"worst": worst, "best": best, "gap": gap, "gap_interval": _difference(correct[own == best], correct[own == worst], rng), "gap_p": p}


def shortcut(
    targets: np.ndarray, predictions: np.ndarray, own: np.ndarray, names: Sequence[str], class_names: Sequence[str], rng: np.random.Generator
) -> dict[str, Any]:
    """Each class by whether something stands in the picture: a class that is found with it and missed without it may be found by it.

    Args:
        targets: True class of each image, (N,).
        predictions: (N,).
        own: Group of each image, (N,).
        names: The two groups; "absent" is the one that begins with a word for it ("no", "0", "without" ...), else the first.
        class_names: C names.
        rng: Of the bootstrap.

    Returns:
        ``present`` and ``absent``, the groups; ``classes``: for each class with at least ``LEAST`` images in both, ``class``, ``found_present`` and
        ``found_absent`` (recall), ``found_difference`` with its interval, and, where there are as many images of other classes in both,
        ``taken_present`` and ``taken_absent`` (other images taken for the class), ``taken_difference`` with its interval; the largest difference
        of recall first. ``suspected``: classes of which the interval of a difference lies above 0.
    """
    absent, present = names if _denied(names[0]) or not _denied(names[1]) else (names[1], names[0])
    with_it, without = own == present, own == absent
    classes, suspected = [], []
    for c, name in enumerate(class_names):
        rows: dict[str, Any] = {"class": name}
        for what, among in (("found", targets == c), ("taken", targets != c)):
            sides = [predictions[side & among] == c for side in (with_it, without)]
            if min(map(len, sides)) < LEAST:
                continue
            rows[f"{what}_present"], rows[f"{what}_absent"] = (float(side.mean()) for side in sides)
            rows[f"{what}_difference"] = rows[f"{what}_present"] - rows[f"{what}_absent"]
            rows[f"{what}_interval"] = _difference(sides[0], sides[1], rng)
        if "found_difference" in rows:
            classes.append(rows)
            if any(rows.get(f"{what}_interval", [0.0])[0] > 0 for what in ("found", "taken")):
                suspected.append(name)
    classes.sort(key=lambda rows: -rows["found_difference"])
    return {"present": present, "absent": absent, "classes": classes, "suspected": suspected}


def _denied(name: str) -> bool:
    return name.casefold().split()[0] in ABSENT
