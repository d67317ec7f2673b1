"""A solver is its options: what it refuses from Python, ``--set`` refuses in words, and the defaults are written once."""

from __future__ import annotations

import dataclasses
import inspect
from numbers import Integral

import numpy as np
import pytest
from sklearn.utils._param_validation import Interval, InvalidParameterError
from sklearn.utils.estimator_checks import check_param_validation

from finelens.core.options import from_mapping
from finelens.errors import UserError
from finelens.methods.registry import find_method
from finelens.solvers import SOLVERS, TDA, GdaEm, OnlineSolver, StatA, TransClip, ZLaP
from finelens.solvers.parameters import rule
from tests.solvers.data import cloud

X, W, _ = cloud([5, 4, 6])
INTERVALS = [
    (name, parameter, constraint)
    for name, solver in SOLVERS.items()
    for parameter, constraints in solver._parameter_constraints.items()
    for constraint in constraints
    if isinstance(constraint, Interval)
]


def outside(interval: Interval) -> list[float]:
    """Values on and beyond the edges of an interval that are not in it."""
    step = 1 if interval.type is Integral else 0.5
    values = [interval.left - step, *([interval.left] if interval.closed in ("right", "neither") else [])]
    if interval.right is not None:
        values += [interval.right + step, *([interval.right] if interval.closed in ("left", "neither") else [])]
    return values if interval.type is Integral else [*values, float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("name", SOLVERS)
def test_scikit_learns_check_of_parameters_passes(name):
    check_param_validation(SOLVERS[name].__name__, SOLVERS[name]())


@pytest.mark.parametrize(("name", "parameter", "interval"), INTERVALS, ids=[f"{name}-{parameter}" for name, parameter, _ in INTERVALS])
def test_values_outside_are_refused_wherever_a_fit_begins(name, parameter, interval):
    for value in outside(interval):
        solver = SOLVERS[name](**{parameter: value})
        begins = [solver.fit, solver.fit_predict_proba]
        if isinstance(solver, OnlineSolver):
            begins += [solver.partial_fit, lambda *_, solver=solver, **given: solver.begin(**given)]
        for begin in begins:
            with pytest.raises(UserError, match=f"The '{parameter}' parameter of {type(solver).__name__} must be .* Got {value} instead"):
                begin(X, prototypes=W)


@pytest.mark.parametrize(("name", "parameter", "interval"), INTERVALS, ids=[f"{name}-{parameter}" for name, parameter, _ in INTERVALS])
def test_options_refuse_the_same_in_words(name, parameter, interval):
    options = find_method(name).config_class
    if parameter in SOLVERS[name].internal:
        assert parameter not in {field.name for field in dataclasses.fields(options)}
        return
    for value in outside(interval):
        if np.isfinite(value):
            with pytest.raises(UserError) as caught:
                from_mapping(options, {parameter: value}, "method")
            assert str(caught.value) == f"method.{parameter} must be {rule(interval)}, got {value if interval.type is Integral else float(value)}"


@pytest.mark.parametrize(
    ("solver", "parameter", "value"),
    [
        (StatA, "neighbours", 0),
        (StatA, "anchor", -1),
        (StatA, "rounds", -3),
        (ZLaP, "alpha", 3.0),
        (TransClip, "confident", 0),
        (GdaEm, "anchor", -5),
        (TDA, "blend", -0.1),
    ],
)
def test_a_refusal_is_scikit_learns_and_ours(solver, parameter, value):
    for kind in (InvalidParameterError, ValueError, UserError):
        with pytest.raises(kind, match=f"'{parameter}' parameter of {solver.__name__}"):
            solver(**{parameter: value}).fit(X, prototypes=W)


@pytest.mark.parametrize(
    ("name", "parameter", "value", "message"),
    [
        ("stata", "neighbours", 0, "method.neighbours must be at least 1, got 0"),
        ("stata", "anchor", 0.0, "method.anchor must be above 0 and finite, got 0.0"),
        ("gda-em", "anchor", -5.0, "method.anchor must be at least 0 and finite, got -5.0"),
        ("zlap", "alpha", 1.0, "method.alpha must be between 0 and 1, got 1.0"),
        ("inmap", "threshold", 1.5, "method.threshold must be between 0 and 1, got 1.5"),
        ("ot", "prior", [1, 0], "method.prior must be estimated, uniform, or finite numbers above 0, one a class, got [1.0, 0.0]"),
        ("ot", "prior", "even", "method.prior: expected one of 'estimated', 'uniform' or a list, each item a number, got 'even'"),
        ("stata", "neighbours", 2.5, "method.neighbours: expected an integer, got 2.5"),
        ("stata", "neighbors", 2, "unknown option method.neighbors; did you mean method.neighbours?"),
    ],
)
def test_words_of_a_refused_option(name, parameter, value, message):
    with pytest.raises(UserError) as caught:
        from_mapping(find_method(name).config_class, {parameter: value}, "method")
    assert str(caught.value) == message


@pytest.mark.parametrize("name", SOLVERS)
def test_every_parameter_has_its_default_and_its_constraint_once(name):
    solver, options = SOLVERS[name], find_method(name).config_class
    parameters = inspect.signature(solver).parameters
    assert parameters.keys() == solver._parameter_constraints.keys()
    own = {field.name: field.default for field in dataclasses.fields(options)}
    assert {key: own[key] for key in parameters if key not in solver.internal} == {
        key: parameter.default for key, parameter in parameters.items() if key not in solver.internal
    }
    assert all(f"        {key}: " in inspect.getdoc(solver).replace("\n    ", "\n        ") for key in parameters)


def test_the_seed_of_the_run_reaches_the_solver():
    assert find_method("tda").config_class().new_solver(7).seed == 7
    assert "seed" not in find_method("stata").config_class().new_solver(7).get_params()
