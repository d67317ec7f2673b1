"""Checks of methods on features, for packages that bring some: what every solver owes, on made-up features, in seconds.

``pytest.mark.parametrize("check", CHECKS)`` and ``check("my-method")`` run them all; docs/adding_a_method.md has the whole file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from finelens import api
from finelens.core.console import Console
from finelens.errors import UserError
from finelens.estimator import LabelFreeClassifier
from finelens.methods.registry import find_method
from finelens.runs.classifier import load_run

CLASSES = 4
_QUIET = Console(enabled=False)


def toy_features(count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit-norm features (N, 16) around four means, and prototypes (4, 16) that lie near the means, as texts do.

    Args:
        count: N; rows go through the classes in turn.
        seed: Of the noise.
    """
    means = np.random.default_rng(0).normal(size=(CLASSES, 16))
    draw = np.random.default_rng(seed + 1)
    x = means[np.arange(count) % CLASSES] + 0.6 * draw.normal(size=(count, 16))
    prototypes = means + 0.5 * np.random.default_rng(2).normal(size=means.shape)
    return _unit(x), _unit(prototypes)


def _unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _fit(method: str, x: np.ndarray, prototypes: np.ndarray, **given: Any) -> LabelFreeClassifier:
    return LabelFreeClassifier(method=method).fit(x, prototypes=prototypes, **given)


def check_entry(method: str) -> None:
    """The entry: a solver that needs features and nothing else, with one sentence about it and a default for every option."""
    entry = find_method(method)
    assert entry.family == "solver", f"these checks are of solvers; {method} is of the family {entry.family}"
    assert not entry.needs & {"pixels", "support", "stream", "hints"}, f"these checks have features only; {method} needs {sorted(entry.needs)}"
    assert entry.summary.endswith("."), "the summary is a sentence"
    entry.config_class()


def check_probabilities(method: str) -> None:
    """Finite probabilities, (N, C), rows that sum to one; better than chance on separable features."""
    x, prototypes = toy_features()
    found = _fit(method, x, prototypes).predict_proba(x)
    assert found.shape == (len(x), CLASSES)
    assert np.isfinite(found).all()
    assert np.abs(found.sum(1) - 1).max() < 1e-5
    assert (found.argmax(1) == np.arange(len(x)) % CLASSES).mean() > 0.75


def check_same_bits(method: str) -> None:
    """The same input and seed give the same bits; other images can be asked."""
    x, prototypes = toy_features()
    other, _ = toy_features(9, seed=5)
    first, second = (_fit(method, x, prototypes).predict_proba(other) for _ in range(2))
    assert np.array_equal(first, second)


def check_hints(method: str) -> None:
    """What a person says of a few images changes what is learned."""
    x, prototypes = toy_features()
    other, _ = toy_features(20, seed=5)
    before = _fit(method, x, prototypes)
    hints = {i: str((i + 1) % CLASSES) for i in range(8)}
    assert not np.array_equal(before.predict_proba(other), _fit(method, x, prototypes, hints=hints).predict_proba(other)), (
        "hints do not reach the fit: use known.clamp"
    )


def check_edges(method: str) -> None:
    """One image, one class, copies, and fewer images than classes."""
    x, prototypes = toy_features()
    cases = {"one image": (x[:1], prototypes), "one class": (x, prototypes[:1]), "copies": (np.repeat(x[:1], 6, 0), prototypes)}
    cases["fewer images than classes"] = (x[:3], prototypes)
    for case, (images, texts) in cases.items():
        found = _fit(method, images, texts).predict_proba(images)
        assert found.shape == (len(images), len(texts)), case
        assert np.isfinite(found).all(), case


def check_saved(method: str) -> None:
    """A run writes a model that answers as the run did."""
    x, prototypes = toy_features()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "x.npy", x)
        np.save(folder / "w.npy", prototypes)
        (folder / "names.txt").write_text("one\ntwo\nthree\nfour\n", encoding="utf-8")
        given: dict[str, Any] = {"prototypes": folder / "w.npy", "method": method, "console": _QUIET}
        result = api.adapt(folder / "x.npy", folder / "names.txt", folder / "run", **given)
        again = load_run(folder / "run").predict_proba(folder / "x.npy")
        assert [row.probability for row in result.rows] == [round(float(p), 6) for p in again.max(1)]


def check_options(method: str) -> None:
    """An option that there is not is refused."""
    x, prototypes = toy_features()
    try:
        LabelFreeClassifier(method=method, options={"method": {"no_such_option": 1}}).fit(x, prototypes=prototypes)
    except UserError:
        return
    raise AssertionError("an unknown option was accepted")


CHECKS: tuple[Callable[[str], None], ...] = (
    check_entry,
    check_probabilities,
    check_same_bits,
    check_hints,
    check_edges,
    check_saved,
    check_options,
)
