"""What the parameters of a solver may be: scikit-learn's constraints, their check, and the same in words for options."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval, InvalidParameterError, StrOptions

from finelens.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")
Constraints = dict[str, list[Any]]

COUNT = [Interval(Integral, 1, None, closed="left")]
SEED = [Interval(Integral, 0, None, closed="left")]
# Infinity is in no interval.
POSITIVE = [Interval(Real, 0, None, closed="neither")]
NOT_NEGATIVE = [Interval(Real, 0, None, closed="left")]
FRACTION = [Interval(Real, 0, 1, closed="both")]
INNER_FRACTION = [Interval(Real, 0, 1, closed="neither")]
PRIOR = [StrOptions({"estimated", "uniform"}), "array-like"]


class ParameterError(UserError, InvalidParameterError):  # type: ignore[misc]
    """A parameter of a solver has a value that it cannot have."""


def checked(method: Callable[P, R]) -> Callable[P, R]:
    """Check the solver's parameters against its ``_parameter_constraints`` before the method runs; a stream checks them when it begins."""
    wrapped: Callable[P, R] = _fit_context(prefer_skip_nested_validation=True)(method)
    return wrapped


def rule(interval: Interval) -> str:
    """What an interval asks for, completing "must be ..."."""
    if interval.right is not None:
        return f"between {interval.left} and {interval.right}"
    least = f"at least {interval.left}" if interval.closed == "left" else f"above {interval.left}"
    return least if interval.type is Integral else f"{least} and finite"
