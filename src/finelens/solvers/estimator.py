"""What scikit-learn asks of an estimator, kept without importing it before it asks: that alone takes as long as a small run."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

Self = TypeVar("Self", bound="Estimator")


class Estimator:
    """A classifier by scikit-learn's conventions, whose parameters are the arguments of its constructor.

    ``clone``, pipelines, searches, scores and scikit-learn's own checks take it. It is no subclass of ``BaseEstimator``, which would have to be
    imported for it; metadata routing and the HTML form of notebooks are not there.
    """

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name.

        Args:
            deep: No effect: no parameter is an estimator.
        """
        return {name: getattr(self, name) for name in sorted(inspect.signature(type(self)).parameters)}

    def set_params(self: Self, **params: Any) -> Self:
        """Set parameters; their values are checked by the next fit.

        Raises:
            ValueError: There is no such parameter.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"Invalid parameter {name!r} for estimator {self}. Valid parameters are: {list(known)!r}.")
            setattr(self, name, value)
        return self

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of right answers.

        Args:
            X: As ``predict`` takes it.
            y: True classes.
            sample_weight: Weight of each row.
        """
        from sklearn.metrics import accuracy_score

        return float(accuracy_score(y, self.predict(X), sample_weight=sample_weight))  # type: ignore[attr-defined]

    def __sklearn_tags__(self) -> Any:
        from sklearn.base import BaseEstimator, ClassifierMixin

        class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
            pass

        return Classifier().__sklearn_tags__()

    def __repr__(self) -> str:
        defaults = {name: parameter.default for name, parameter in inspect.signature(type(self)).parameters.items()}
        changed = [f"{name}={value!r}" for name, value in self.get_params().items() if repr(value) != repr(defaults[name])]
        return f"{type(self).__name__}({', '.join(changed)})"


def check_fitted(estimator: Estimator) -> None:
    """Refuse one without ``classes_``.

    Raises:
        NotFittedError: scikit-learn's.
    """
    if not hasattr(estimator, "classes_"):
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(estimator, "classes_")
