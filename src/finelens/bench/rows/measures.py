"""What a row measures, from logits of the method and of the unadapted model on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finelens.evaluation.average_precision import interval, mean_average_precision
from finelens.evaluation.elevater import STATED, map_11_points, roc_auc
from finelens.evaluation.metrics import accuracy, auroc_fpr95, ece, evaluate_predictions, mcnemar, nll, paired_bootstrap
from finelens.evaluation.none_of_these import probably_none
from finelens.evaluation.trust import agreement, share_above
from finelens.storage.predictions import softmax

# Scores by which images of no class are told, see bench.rows.unknown; ``none_of_these`` of predictions.csv holds the second.
TEXT = "text"
SCORES = ("probability", TEXT, "cosine", "negatives", "gaussians")
# Of a set that is called as ELEVATER calls it, the measure that it states for it.
ELEVATER = "elevater"
# Further accuracies that are said without labels of the test images, see evaluation.trust; each has its distance from the truth beside it.
ESTIMATES = ("estimate_threshold", "estimate_agreement", "estimate_answers", "estimate_labelled")
# Every measure that is one number, so that tables know its unit: shares are shown in per cent.
SHARES = frozenset(
    {
        *(f"none_{name}_{figure}" for name in SCORES for figure in ("auroc", "fpr95")),
        *("none_known", "none_unknown", "none_said", "none_true"),
        "accuracy",
        "class_mean_accuracy",
        "worst_10_percent",
        "macro_f1",
        "top5_accuracy",
        "map_11_points",
        "zero_shot_map_11_points",
        "mean_average_precision",
        "zero_shot_mean_average_precision",
        "description_ensemble_mean_average_precision",
        "mean_average_precision_difference",
        "roc_auc",
        ELEVATER,
        "ece",
        "calibrated_ece",
        "estimated_accuracy",
        "estimate_error",
        *(f"{name}{end}" for name in ESTIMATES for end in ("", "_error")),
        "zero_shot_ece",
        "zero_shot_accuracy",
        "zero_shot_class_mean_accuracy",
        "description_ensemble_accuracy",
        "difference",
        "gain",
        "agreement",
    }
)
NUMBERS = frozenset(
    {"nll", "calibrated_nll", "zero_shot_nll", "temperature", "mcnemar_p", "gain_mcnemar_p", "absent_classes", "classes_per_image", "n"}
)

# Of what evaluate_predictions returns; class by class it would be far longer than all the rest.
_KEPT = (
    "accuracy",
    "accuracy_interval",
    "class_mean_accuracy",
    "worst_10_percent",
    "macro_f1",
    "ece",
    "nll",
    "zero_shot_accuracy",
    "zero_shot_class_mean_accuracy",
    "difference",
    "difference_interval",
    "mcnemar_p",
    "branches",
    "n",
)


@dataclass(frozen=True)
class Source:
    """What is known of the images of a fit.

    Attributes:
        confidence: Calibrated probability of each answer, (M,); M = 0 where the test images are the images of the fit.
        right: Whether each is right, (M,) bool, for the published threshold that needs labels; None where not all labels are known.
        answered: Accuracy by hints, tested before they were learnt; None without.
    """

    confidence: np.ndarray
    right: np.ndarray | None
    answered: float | None


def measure(
    targets: np.ndarray,
    logits: Mapping[str, np.ndarray],
    zero_shot: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    temperature: float | None = None,
    source: Source | None = None,
) -> tuple[dict[str, Any], np.ndarray]:
    """All measures of a row.

    Args:
        targets: Class of each test image, (N,).
        logits: Of the method, (N, C), by branch; ``logits`` is its answer.
        zero_shot: Of the unadapted model, (N, C): ``templates`` and ``descriptions``.
        class_names: C names.
        temperature: What a run would divide the logits by, found without labels; None where it was not asked.
        source: The images that the method was fitted to; None where they were not asked about.

    Returns:
        The measures: what :func:`finelens.evaluation.metrics.evaluate_predictions` says but for single classes; ``agreement`` with zero-shot;
        ``top5_accuracy``, ``map_11_points`` and, of two classes, ``roc_auc`` (:mod:`finelens.evaluation.elevater`);
        ``description_ensemble_accuracy``; ``baseline``, the better of the two unadapted answers, with ``gain``, ``gain_interval`` and
        ``gain_mcnemar_p`` against it; ``zero_shot_ece`` and ``zero_shot_nll``; with a ``temperature``, that, ``calibrated_ece`` and
        ``calibrated_nll``, and the accuracy that the mean calibrated confidence promises (``estimated_accuracy``) with its distance from the true one
        (``estimate_error``); with a ``source``, the further :data:`ESTIMATES`, each with its ``_error``. And whether each image is right, (N,).
    """
    probabilities = softmax(logits["logits"])
    answers, first = probabilities.argmax(1), {name: values.argmax(1) for name, values in zero_shot.items()}
    branches = {name: values.argmax(1) for name, values in logits.items() if name != "logits"}
    full = evaluate_predictions(targets, probabilities, class_names, zero_shot=first["templates"], branches=branches)
    baseline = max(("templates", "descriptions"), key=lambda name: (first[name] == targets).mean())
    correct, correct_first = answers == targets, first[baseline] == targets
    start = softmax(zero_shot["templates"])
    return {name: full[name] for name in _KEPT} | {
        "absent_classes": len(full["absent_classes"]),
        **_ranked(targets, probabilities),
        "agreement": accuracy(first["templates"], answers),
        "description_ensemble_accuracy": accuracy(targets, first["descriptions"]),
        "baseline": baseline,
        "gain": float(correct.mean() - correct_first.mean()),
        "gain_interval": list(paired_bootstrap(correct, correct_first)),
        "gain_mcnemar_p": mcnemar(correct, correct_first),
        "zero_shot_ece": ece(targets, start),
        "zero_shot_nll": nll(targets, start),
        **_calibrated(targets, logits["logits"], temperature),
        **_estimated(targets, logits["logits"], first, temperature, source),
    }, correct


def measure_several(targets: np.ndarray, logits: Mapping[str, np.ndarray], zero_shot: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """All measures of a row about photographs that may have several classes: of the order of the images within each class, and none of one answer.

    Args:
        targets: Which classes each test image has, (N, C) bool; some image has one.
        logits: Of the method, (N, C), by branch; ``logits`` is its answer.
        zero_shot: Of the unadapted model, (N, C): ``templates`` and ``descriptions``.

    Returns:
        ``map_11_points`` of the posteriors, as in ELEVATER; ``mean_average_precision`` of the logits, as in CLIP_benchmark, with its interval;
        both of zero-shot; ``mean_average_precision_difference`` to zero-shot, with its interval; that of the unadapted model with descriptions;
        ``classes_per_image``; ``absent_classes``, left out of the means; ``n``.
    """
    own = logits["logits"]
    found, first = mean_average_precision(targets, own), mean_average_precision(targets, zero_shot["templates"])
    return {
        "mean_average_precision": found,
        "mean_average_precision_interval": list(interval(targets, own)),
        "map_11_points": map_11_points(targets, softmax(own)),
        "zero_shot_mean_average_precision": first,
        "zero_shot_map_11_points": map_11_points(targets, softmax(zero_shot["templates"])),
        "description_ensemble_mean_average_precision": mean_average_precision(targets, zero_shot["descriptions"]),
        "mean_average_precision_difference": found - first,
        "mean_average_precision_difference_interval": list(interval(targets, own, zero_shot["templates"])),
        "classes_per_image": float(targets.sum(axis=1).mean()),
        "absent_classes": int((~targets.any(axis=0)).sum()),
        "n": len(targets),
    }


def _ranked(targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """What the order of the classes, or of the images within a class, says."""
    own = np.arange(probabilities.shape[1]) == targets[:, None]
    # Of equal classes the first is the answer and comes first here too: a solver that says 0 of all but one has no five that are likely.
    true = probabilities[own][:, None]
    above = ((probabilities > true) | ((probabilities == true) & (np.arange(probabilities.shape[1]) < targets[:, None]))).sum(axis=1)
    found = {"top5_accuracy": float((above < 5).mean()), "map_11_points": map_11_points(own, probabilities)}
    if probabilities.shape[1] == 2 and own.any(axis=0).all():
        found["roc_auc"] = roc_auc(targets == 1, probabilities[:, 1])
    return found


def stated(name: str, measures: Mapping[str, Any]) -> dict[str, float]:
    """The measure that ELEVATER states for a set of that name; nothing for another set."""
    measure = STATED.get(name, "")
    return {ELEVATER: measures[measure]} if measure in measures else {}


def measure_none(scores: Mapping[str, np.ndarray], unknown: np.ndarray) -> dict[str, float]:
    """How well images of no class are told from the others, of which there are some.

    Args:
        scores: Of :mod:`finelens.bench.rows.unknown`, each (N,).
        unknown: Which images belong to no class, (N,) bool.

    Returns:
        ``none_NAME_auroc`` and ``none_NAME_fpr95`` (:func:`finelens.evaluation.metrics.auroc_fpr95`) of each score, where there are both.
        Of the model's own level: the shares of the known and of the unknown images above it (``none_known``, ``none_unknown``), of all that it calls
        none (``none_said``), and of all that are (``none_true``).
    """
    if not scores:
        return {}
    said = probably_none(scores[TEXT])
    found = {"none_known": said[~unknown].mean(), "none_said": said.mean(), "none_true": unknown.mean()}
    if unknown.any():
        found["none_unknown"] = said[unknown].mean()
        for name, values in scores.items():
            found[f"none_{name}_auroc"], found[f"none_{name}_fpr95"] = auroc_fpr95(values, unknown)
    return {name: float(value) for name, value in found.items()}


def _calibrated(targets: np.ndarray, logits: np.ndarray, temperature: float | None) -> dict[str, float]:
    if temperature is None:
        return {}
    p = softmax(logits / temperature)
    estimated, true = float(p.max(axis=1).mean()), accuracy(targets, p.argmax(axis=1))
    said = {"estimated_accuracy": estimated, "estimate_error": abs(estimated - true)}
    return {"temperature": temperature, "calibrated_ece": ece(targets, p), "calibrated_nll": nll(targets, p), **said}


def _estimated(
    targets: np.ndarray, logits: np.ndarray, unadapted: Mapping[str, np.ndarray], temperature: float | None, source: Source | None
) -> dict[str, float]:
    if temperature is None or source is None:
        return {}
    p = softmax(logits / temperature)
    answers, confidence = p.argmax(axis=1), p.max(axis=1)
    found = {"estimate_agreement": agreement(answers, unadapted.values()), "estimate_answers": source.answered}
    if len(source.confidence):
        believed = float(source.confidence.mean()) if source.answered is None else source.answered
        found["estimate_threshold"] = share_above(confidence, source.confidence, believed)
        found["estimate_labelled"] = None if source.right is None else share_above(confidence, source.confidence, float(source.right.mean()))
    true = accuracy(targets, answers)
    said = {name: value for name, value in found.items() if value is not None}
    return said | {f"{name}_error": abs(value - true) for name, value in said.items()}
