"""What every solver owes, whatever it computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks

from finelens.errors import UserError
from tests.solvers.data import ALONE, ONLINE, SCALE, SOLVERS, cloud, unit

X, W, Y = cloud([9, 12, 7, 11])
NEW, _, _ = cloud([3, 3, 3, 3], seed=5)

each = pytest.mark.parametrize("name", SOLVERS)


def transduced(name, x=X, w=W, **options):
    return SOLVERS[name](**options).fit_predict_proba(x, prototypes=w, logit_scale=SCALE)


def induced(name, new=NEW, x=X, w=W, **options):
    return SOLVERS[name](**options).fit(x, prototypes=w, logit_scale=SCALE).predict_proba(new)


def assert_probabilities(p, shape):
    assert p.shape == shape
    assert np.isfinite(p).all()
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)


@each
def test_answers_are_probabilities_of_the_kind_that_came(name):
    solver = SOLVERS[name]()
    assert_probabilities(solver.fit_predict_proba(X, prototypes=W), X.shape[:1] + W.shape[:1])
    assert_probabilities(solver.predict_proba(NEW), NEW.shape[:1] + W.shape[:1])
    assert (solver.predict(NEW) == solver.predict_proba(NEW).argmax(1)).all()
    single = torch.tensor(X, dtype=torch.float32)
    p = solver.fit_predict_proba(single, prototypes=torch.tensor(W, dtype=torch.float32))
    assert isinstance(p, torch.Tensor)
    assert p.dtype is torch.float32
    np.testing.assert_allclose(p.numpy(), solver.fit_predict_proba(X, prototypes=W), atol=1e-3)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in ONLINE])
def test_order_of_images_carries_through(name):
    order = np.random.default_rng(1).permutation(len(X))
    np.testing.assert_allclose(transduced(name, X[order]), transduced(name)[order], atol=1e-9)
    np.testing.assert_allclose(induced(name, x=X[order]), induced(name), atol=1e-9)


@each
def test_order_of_classes_carries_through(name):
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(transduced(name, w=W[order]), transduced(name)[:, order], atol=1e-9)
    np.testing.assert_allclose(induced(name, w=W[order]), induced(name)[:, order], atol=1e-9)


@each
@pytest.mark.parametrize("chunk_size", [1, 7])
def test_chunks_do_not_matter(name, chunk_size):
    np.testing.assert_allclose(transduced(name, chunk_size=chunk_size), transduced(name), atol=1e-10)
    np.testing.assert_allclose(induced(name, chunk_size=chunk_size), induced(name), atol=1e-10)


@each
def test_length_of_rows_does_not_matter(name):
    lengths = np.random.default_rng(2).uniform(0.1, 9, len(X))[:, None]
    np.testing.assert_allclose(transduced(name, X * lengths, 3 * W), transduced(name), atol=1e-9)


@each
def test_labels_are_not_looked_at(name):
    solver = SOLVERS[name]()
    assert np.array_equal(solver.fit(X, Y, prototypes=W).predict_proba(NEW), solver.fit(X, "nonsense", prototypes=W).predict_proba(NEW))


@each
def test_a_new_image_is_scored_by_itself(name):
    solver = SOLVERS[name]().fit(X, prototypes=W, logit_scale=SCALE)
    together = solver.predict_proba(NEW)
    np.testing.assert_allclose(np.concatenate([solver.predict_proba(row[None]) for row in NEW]), together, atol=1e-10)


@pytest.mark.parametrize("name", ALONE)
def test_unlabelled_images_help_where_texts_are_poor(name):
    gains = []
    for seed in range(3):
        x, w, y = cloud([40] * 6, tilt=0.4, seed=seed)
        gains.append((transduced(name, x, w).argmax(1) == y).mean() - ((x @ w.T).argmax(1) == y).mean())
    assert np.mean(gains) > 0.005
    assert min(gains) >= 0


@each
def test_absent_classes_are_finite(name):
    x, w, _ = cloud([20, 20, 0, 0, 0])
    assert_probabilities(transduced(name, x, w), (40, 5))
    assert_probabilities(induced(name, NEW, x, w), (12, 5))


@each
def test_one_image_a_class(name):
    x, w, y = cloud([1] * 6, tilt=0.1)
    p = transduced(name, x, w)
    assert_probabilities(p, (6, 6))
    assert (p.argmax(1) == y).all()


@each
@pytest.mark.parametrize(("images", "classes"), [(1, 1), (1, 4), (3, 7), (9, 1), (2, 2)])
def test_few_images_and_few_classes(name, images, classes):
    x, w = X[:images], cloud([1] * classes)[1]
    assert_probabilities(transduced(name, x, w), (images, classes))
    assert_probabilities(induced(name, NEW, x, w), (len(NEW), classes))


@each
def test_duplicated_images(name):
    x = np.repeat(X[:3], 20, axis=0)
    assert_probabilities(transduced(name, x), (60, 4))
    p = induced(name, x, x)
    np.testing.assert_allclose(p, np.repeat(p[::20], 20, axis=0), atol=1e-12)
    assert_probabilities(transduced(name, np.repeat(X[:1], 30, axis=0)), (30, 4))


@each
def test_zero_vectors(name):
    x = np.concatenate([X, np.zeros((2, X.shape[1]))])
    assert_probabilities(transduced(name, x), (len(x), 4))
    assert_probabilities(induced(name, np.zeros((3, X.shape[1]))), (3, 4))
    assert_probabilities(transduced(name, np.zeros((5, X.shape[1]))), (5, 4))
    assert_probabilities(transduced(name, w=np.concatenate([W, np.zeros((1, X.shape[1]))])), (len(X), 5))


@each
def test_behaves_as_a_scikit_learn_classifier(name):
    solver = SOLVERS[name](chunk_size=11)
    assert is_classifier(solver)
    with pytest.raises(NotFittedError):
        solver.predict_proba(X)
    before = dict(vars(solver))
    assert before == solver.get_params()
    solver.fit(X, prototypes=W)
    assert solver.get_params() == before
    assert {key for key in vars(solver) if key not in before} == {key for key in vars(solver) if key.endswith("_")}
    again = clone(solver)
    assert again.get_params() == before
    assert not hasattr(again, "classes_")
    assert solver.score(X, Y) == (solver.predict(X) == Y).mean()


@each
@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_set_params,
    ],
)
def test_scikit_learn_checks_that_need_no_fit(name, check):
    """The others call ``fit`` without prototypes, which no solver can do."""
    check(name, SOLVERS[name]())


@each
def test_state_is_all_that_prediction_needs(name):
    solver = SOLVERS[name]().fit(X, prototypes=W, logit_scale=SCALE)
    state = {key: value.clone() for key, value in solver.state().items()}
    other = SOLVERS[name]().load_state(state, classes=4, features=X.shape[1])
    assert np.array_equal(other.predict_proba(NEW), solver.predict_proba(NEW))


@pytest.mark.parametrize(
    ("x", "w", "options", "message"),
    [
        (X[:, :5], W, {}, "5 columns and prototypes 16"),
        (X[0], W, {}, "X must be a matrix"),
        (X[:0], W, {}, "X must be a matrix with at least one row"),
        (X, [["a", "b"]], {}, "prototypes must be a matrix of numbers"),
        (np.full_like(X, np.nan), W, {}, "X holds values that are not finite"),
        (X, W, {"logit_scale": 0.0}, "logit_scale must be above 0"),
    ],
)
def test_unusable_input_is_refused_in_words(x, w, options, message):
    with pytest.raises(UserError, match=message):
        SOLVERS["stata"]().fit(x, prototypes=w, **options)


def test_new_images_of_another_width_are_refused():
    with pytest.raises(UserError, match="fitted on 16"):
        SOLVERS["ot"]().fit(X, prototypes=W).predict(unit(np.ones((2, 3))))
