"""What the parameters of a solver may be: scikit-learn's constraints, their check, and the same in words for options.

scikit-learn takes a second of processor time to import, and most runs use a solver as a method only. A :class:`Rule` therefore says for itself
whether it allows a value, and turns into scikit-learn's constraints when those are read.
"""

from __future__ import annotations

import functools
import math
import operator
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from sklearn.utils._param_validation import Interval

P = ParamSpec("P")
R = TypeVar("R")
Constraints = dict[str, Sequence[Any]]


class Rule(Sequence[Any]):
    """The constraints of one parameter, of which one has to be met."""

    @abstractmethod
    def allows(self, value: Any) -> bool:
        """Whether one of them is met."""

    @abstractmethod
    def constraints(self) -> list[Any]:
        """They in scikit-learn's own types."""

    def __getitem__(self, index: Any) -> Any:
        return self.constraints()[index]

    def __len__(self) -> int:
        return len(self.constraints())


@dataclass(frozen=True)
class Numbers(Rule):
    """Finite numbers of an interval.

    Attributes:
        kind: ``Integral`` or ``Real``.
        left: Lower end.
        right: Upper end; None for none.
        closed: Which ends belong to it, as scikit-learn names them.
    """

    kind: type
    left: float
    right: float | None = None
    closed: str = "left"

    def allows(self, value: Any) -> bool:
        """Whether the value lies between the ends."""
        above = operator.ge if self.closed in ("left", "both") else operator.gt
        below = operator.le if self.closed in ("right", "both") else operator.lt
        inside = isinstance(value, Real) and above(value, self.left) and below(value, math.inf if self.right is None else self.right)
        return bool(inside) and isinstance(value, self.kind)

    def constraints(self) -> list[Any]:
        """An interval."""
        from sklearn.utils._param_validation import Interval

        return [Interval(self.kind, self.left, self.right, closed=self.closed)]


@dataclass(frozen=True)
class Word(Rule):
    """One of some words."""

    words: frozenset[str]

    def allows(self, value: Any) -> bool:
        """Whether it is one of the words."""
        return isinstance(value, str) and value in self.words

    def constraints(self) -> list[Any]:
        """Words."""
        from sklearn.utils._param_validation import StrOptions

        return [StrOptions(set(self.words))]


@dataclass(frozen=True)
class WordOrShares(Rule):
    """One of some words, or one number a class."""

    words: frozenset[str]

    def allows(self, value: Any) -> bool:
        """Whether it is one of the words, or of the kind of an array."""
        return value in self.words if isinstance(value, str) else _meets("array-like", value)

    def constraints(self) -> list[Any]:
        """Words, and an array."""
        from sklearn.utils._param_validation import StrOptions

        return [StrOptions(set(self.words)), "array-like"]


COUNT = Numbers(Integral, 1)
SEED = Numbers(Integral, 0)
# Infinity is in no interval.
POSITIVE = Numbers(Real, 0, closed="neither")
NOT_NEGATIVE = Numbers(Real, 0)
FRACTION = Numbers(Real, 0, 1, closed="both")
INNER_FRACTION = Numbers(Real, 0, 1, closed="neither")
PRIOR = WordOrShares(frozenset({"estimated", "uniform"}))


def allowed(constraints: Iterable[Any], value: object) -> bool:
    """Whether a value meets one of a parameter's constraints: a :class:`Rule`, or a list of scikit-learn's."""
    return constraints.allows(value) if isinstance(constraints, Rule) else any(_meets(one, value) for one in constraints)


def _meets(constraint: Any, value: object) -> bool:
    if constraint is None or isinstance(constraint, type):
        return value is None if constraint is None else isinstance(value, constraint)
    from sklearn.utils._param_validation import make_constraint

    return bool(make_constraint(constraint).is_satisfied_by(value))


def check_parameters(constraints: Mapping[str, Iterable[Any]], values: Mapping[str, object], name: str) -> None:
    """Refuse values that meet none of their constraints, in scikit-learn's words.

    Args:
        constraints: By parameter; one without any may be anything.
        values: By parameter.
        name: The estimator's.

    Raises:
        ParameterError: One of them.
    """
    if not all(allowed(constraints[key], value) for key, value in values.items() if key in constraints):
        from finelens.solvers.refusal import refuse

        refuse(constraints, values, name)


def checked(method: Callable[P, R]) -> Callable[P, R]:
    """Check the solver's parameters against its ``_parameter_constraints`` before the method runs; a stream checks them when it begins."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        solver: Any = args[0]
        if method.__name__ != "partial_fit" or not hasattr(solver, "classes_"):
            solver._validate_params()
        return method(*args, **kwargs)

    return wrapped


def rule(interval: Interval) -> str:
    """What an interval asks for, completing "must be ..."."""
    if interval.right is not None:
        return f"between {interval.left} and {interval.right}"
    least = f"at least {interval.left}" if interval.closed == "left" else f"above {interval.left}"
    return least if interval.type is Integral else f"{least} and finite"
