"""scikit-learn's own checks of estimators, those that apply: on solvers and on ``LabelFreeClassifier`` over features.

A label-free ``fit`` needs prototypes, which the checks do not give. They are bound to it here: the means of the classes in the checks' labels, of
which nothing else reaches ``fit``. Left out are the checks that ask for a supervised classifier's accuracy, for ``ValueError`` where finelens raises
``UserError``, for integers as features (a sequence of integer arrays may be images), for pickles, or for sparse and one-dimensional input.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import KFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks as checks

import finelens
from finelens.errors import UserError
from finelens.estimator import LabelFreeClassifier
from finelens.storage.predictions import read_predictions
from tests.solvers.data import ALONE, ONLINE, cloud
from tests.toy import CLASSES, QUIET, pictures

FITTING = (
    checks.check_dict_unchanged,
    checks.check_dont_overwrite_parameters,
    checks.check_estimators_fit_returns_self,
    checks.check_estimators_overwrite_params,
    checks.check_estimators_unfitted,
    checks.check_fit_check_is_fitted,
    checks.check_fit_idempotent,
    checks.check_fit_score_takes_y,
    checks.check_methods_sample_order_invariance,
    checks.check_methods_subset_invariance,
    checks.check_n_features_in,
    checks.check_pipeline_consistency,
)
PLAIN = (
    checks.check_estimator_cloneable,
    checks.check_estimator_repr,
    checks.check_get_params_invariance,
    checks.check_no_attributes_set_in_init,
    checks.check_parameters_default_constructible,
    checks.check_set_params,
)


def bound(kind, **given):
    """The estimator with prototypes for whatever a check fits it to."""

    class Bound(kind):
        def fit(self, X, y=None):
            X = np.asarray(X, dtype=np.float64)
            groups = np.arange(len(X)) % 2 if y is None else np.unique(np.asarray(y), return_inverse=True)[1].ravel()
            means = np.stack([X[groups == c].mean(0) for c in range(groups.max() + 1)])
            return super().fit(X, prototypes=means + 1e-3)

    Bound.__init__ = kind.__init__
    return Bound(**given)


# In float32 the last bits of a row may depend on its batch, and the logit scale, 100 here, multiplies them.
OTHER_BATCH = 1e-5


def run(check, estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check("Bound", estimator)


@pytest.mark.parametrize("check", FITTING, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", [name for name in ALONE if name not in ONLINE])
def test_solvers(name, check):
    run(check, bound(ALONE[name]))


@pytest.mark.parametrize("check", FITTING, ids=lambda check: check.__name__)
def test_classifier_over_features(check, monkeypatch):
    if check is checks.check_methods_subset_invariance:
        # It compares one row at a time with all of them at once, by numbers of double precision.
        close = checks.assert_allclose
        monkeypatch.setattr(checks, "assert_allclose", lambda a, b, atol, err_msg: close(a, b, atol=OTHER_BATCH, err_msg=err_msg))
    run(check, bound(LabelFreeClassifier, method="stata"))


@pytest.mark.parametrize("check", PLAIN, ids=lambda check: check.__name__)
def test_classifier_without_a_fit(check):
    run(check, LabelFreeClassifier())


X, W, Y = cloud([20, 15, 25, 0], 12)


@pytest.mark.parametrize("method", ["zero-shot", "stata", "gda-em", "joint-gmm", "consensus", "tip-adapter", "auto"])
def test_features_from_python_do_what_a_file_does(tmp_path, method):
    """Above all, for a researcher with features of any model: the same answers as the command gives."""
    model = LabelFreeClassifier(CLASSES, method=method).fit(X, Y, prototypes=W, logit_scale=20.0)
    assert model.n_features_in_ == 12
    assert list(model.classes_) == sorted(CLASSES)
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "W.npy", W)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    given = {"prototypes": tmp_path / "W.npy", "logit_scale": 20.0, "method": method, "calibration": False, "console": QUIET}
    finelens.adapt(tmp_path / "X.npy", tmp_path / "classes.txt", tmp_path / "run", **given)
    rows = read_predictions(tmp_path / "run/predictions.csv")
    assert list(model.predict(X)) == [row.label for row in rows]
    np.testing.assert_allclose(model.predict_proba(X).max(1), [row.probability for row in rows], atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(torch.tensor(X)), model.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("page", ["README.md", "docs/features.md"])
def test_the_example_of_the_page_runs(page):
    """``features``, ``text_features`` and ``new_features`` are what a researcher brings."""
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    (example,) = [block for block in blocks if "prototypes=text_features" in block]
    world = {"features": X, "text_features": W[:2], "new_features": X[:5]}
    exec(example, world)
    assert world["names"].shape == (5,)


def test_classes_without_names_are_numbers():
    model = LabelFreeClassifier(method="stata").fit(X, prototypes=W)
    assert model.classes_.tolist() == [0, 1, 2, 3]
    assert model.score(X, Y) > 0.9
    # A feature of length 0 says nothing.
    rows = np.concatenate([X[:2], np.zeros((1, 12))])
    assert np.isnan(model.predict_proba(rows)).all(1).tolist() == [False, False, True]
    assert model.predict(rows).tolist()[2] == -1
    assert model.classifier_.predict(X[:1]) == [str(model.predict(X[:1])[0])]


NAMES = np.array(["tabby", "siamese", "persian", "ocicat"])


def test_scorers_that_use_probabilities_take_the_columns_as_they_are():
    """Every scorer of scikit-learn that asks for probabilities assumes sorted classes and does not look at ``classes_``."""
    y = NAMES[Y]
    x, y = X[y != "ocicat"], y[y != "ocicat"]
    model = LabelFreeClassifier(list(NAMES[:3]), method="gda-em", prototypes=W[:3])
    scores = {name: cross_val_score(model, x, y, scoring=name).mean() for name in ("accuracy", "roc_auc_ovr", "neg_log_loss", "neg_brier_score")}
    assert scores["accuracy"] == 1
    assert scores["roc_auc_ovr"] == 1
    assert scores["neg_log_loss"] > -0.05
    assert scores["neg_brier_score"] > -0.05
    fitted = model.fit(x)
    assert list(fitted.classes_) == sorted(NAMES[:3])
    # The class of a column is told by classes_, whatever order the user gave.
    np.testing.assert_array_equal(fitted.predict_proba(x), fitted.classifier_.predict_proba(x)[:, [2, 1, 0]])
    turned = LabelFreeClassifier(list(NAMES[2::-1]), method="gda-em", prototypes=W[2::-1]).fit(x)
    np.testing.assert_allclose(turned.predict_proba(x), fitted.predict_proba(x), atol=1e-6)


def test_prototypes_of_the_constructor_are_not_divided_among_folds():
    """A parameter of ``fit`` with as many rows as samples is; that of the constructor is the same for each fold."""
    prototypes, names = np.eye(12), np.array([f"class {i:02d}" for i in range(12)])
    rows = prototypes + 0.01
    model = clone(LabelFreeClassifier(names.tolist(), method="zero-shot", prototypes=prototypes))
    assert (cross_val_predict(model, rows, names, cv=KFold(3)) == names).all()
    with pytest.raises(UserError, match="8 prototypes for 12 classes"):
        cross_val_predict(model, rows, names, cv=KFold(3), params={"prototypes": prototypes})
    # What fit is given goes first.
    assert (model.fit(rows, prototypes=prototypes[::-1]).predict(rows) == names[::-1]).all()


class Table:
    """What a table of another library looks like: columns with names, and an array on demand."""

    def __init__(self, values: np.ndarray, columns: list[str]) -> None:
        self.values, self.columns, self.shape = values, columns, values.shape

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.values, dtype)

    def __len__(self) -> int:
        return len(self.values)


def test_tables_are_features():
    model = LabelFreeClassifier(CLASSES, method="gda-em")
    plain = model.fit(X, prototypes=W).predict_proba(X)
    np.testing.assert_array_equal(model.fit(Table(X, ["a"] * 12), prototypes=Table(W, ["a"] * 12)).predict_proba(Table(X, ["a"] * 12)), plain)


def test_columns_of_a_frame_have_names_that_must_stay():
    pandas = pytest.importorskip("pandas")
    columns = [f"f{i}" for i in range(12)]
    frame = pandas.DataFrame(X, columns=columns)
    model = make_pipeline(StandardScaler(with_std=False).set_output(transform="pandas"), LabelFreeClassifier(CLASSES, method="stata", prototypes=W))
    assert list(model.fit(frame)[-1].feature_names_in_) == columns
    assert model.predict_proba(frame).shape == (len(X), 4)
    with pytest.raises(UserError, match="order"):
        model[-1].predict_proba(frame[columns[::-1]])


def test_several_prototypes_and_hints():
    several = np.stack([W, W + 0.1], axis=1)
    model = LabelFreeClassifier(CLASSES, method="gda")
    with pytest.raises(UserError, match="--hints"):
        model.fit(X, prototypes=several)
    model.fit(X, prototypes=several, hints={i: CLASSES[Y[i]] for i in range(0, len(X), 5)})
    assert model.score(X, np.array(CLASSES)[Y]) > 0.9


@pytest.mark.parametrize(
    ("x", "given", "words"),
    [
        (X, {}, "features and prototypes go together"),
        (pictures(1), {"prototypes": W}, "features and prototypes go together"),
        (X, {"prototypes": W[:, :5]}, "prototypes have 5 columns, features have 12"),
        (X, {"prototypes": W[:3]}, "3 prototypes for 4 classes"),
        (np.full_like(X, np.nan), {"prototypes": W}, "60 rows of the features with NaN or infinity"),
        (X[:0], {"prototypes": W}, "expected features of shape"),
        (X, {"prototypes": W, "logit_scale": -1.0}, "--logit-scale must be above 0"),
    ],
)
def test_unusable_arrays_are_one_line(x, given, words):
    with pytest.raises(UserError, match=words):
        LabelFreeClassifier(CLASSES, method="stata").fit(x, **given)


def test_what_needs_photographs_says_so(tiny_vit):
    with pytest.raises(UserError, match="method microclip needs photographs, and the array holds features"):
        LabelFreeClassifier(CLASSES, method="microclip").fit(X, prototypes=W)
    with pytest.raises(UserError, match="descriptions have no effect beside prototypes"):
        LabelFreeClassifier(CLASSES, method="stata", descriptions={}).fit(X, prototypes=W)
    with pytest.raises(UserError, match="logit_scale has an effect beside features only"):
        LabelFreeClassifier(CLASSES, backbone=f"local:{tiny_vit}", method="stata").fit(pictures(1), logit_scale=3.0)
    model = LabelFreeClassifier(CLASSES, method="stata").fit(X, prototypes=W)
    with pytest.raises(UserError, match="has no image tower"):
        model.predict(pictures(1))
    with pytest.raises(UserError, match="has features of 5 columns, the run was made on 12"):
        model.predict(X[:, :5])
