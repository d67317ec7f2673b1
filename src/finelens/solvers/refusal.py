"""Refusals that are scikit-learn's errors as well; imported when there is one, as scikit-learn is slow to import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sklearn.utils._param_validation import InvalidParameterError, validate_parameter_constraints

from finelens.errors import UserError


class ParameterError(UserError, InvalidParameterError):  # type: ignore[misc]
    """A parameter of a solver has a value that it cannot have."""


def refuse(constraints: Mapping[str, Iterable[object]], values: Mapping[str, object], name: str) -> None:
    """Say in scikit-learn's words which value meets none of its constraints; arguments as for ``parameters.check_parameters``.

    Raises:
        ParameterError: Always, if there is one.
    """
    try:
        validate_parameter_constraints(dict(constraints), dict(values), caller_name=name)
    except InvalidParameterError as error:
        raise ParameterError(str(error)) from None
