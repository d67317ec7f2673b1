"""Strict reading of frozen dataclasses from plain mappings: nothing unknown, nothing of the wrong type, nothing missing passes."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Literal, TypeVar, Union

from finelens.errors import UserError

T = TypeVar("T")

_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def require(condition: bool, key: str, rule: str, got: object) -> None:
    """Refuse a value that breaks a rule of its dataclass; for use in ``__post_init__``.

    Args:
        condition: Whether the value is allowed.
        key: Full name of the option, e.g. ``training.epochs``.
        rule: What the value must be, completing "must be ...".
        got: The value.

    Raises:
        UserError: ``condition`` is false.
    """
    if not condition:
        raise UserError(f"{key} must be {rule}, got {got!r}")


def nearest(name: str, known: Iterable[str], form: Callable[[str], str] = str.lower) -> str | None:
    """The known name most like a mistyped one, or None when nothing is near: for hints in messages, never for matching.

    Args:
        name: The mistyped name.
        known: The names that there are.
        form: What of the names is compared.
    """
    by_form = {form(candidate): candidate for candidate in known}
    found = difflib.get_close_matches(form(name), by_form, n=1)
    return by_form[found[0]] if found else None


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Build a frozen dataclass from a mapping, strictly.

    Fields may be ``int``, ``float``, ``bool``, ``str``, ``Literal``, a union or optional of these, ``tuple``, ``Mapping``, or another dataclass.
    An integer is accepted where a number is asked for; true and false are never numbers; a JSON list becomes a tuple.

    Args:
        cls: The dataclass.
        mapping: Field names to values, as JSON gives them. Fields left out keep their defaults.
        where: Prefix of the names in messages, e.g. ``training``; empty for none.

    Returns:
        The instance; range checks of its ``__post_init__`` have run.

    Raises:
        UserError: Unknown, missing or ill-typed key; the message names it.
        TypeError: ``cls`` has a field of a type that is not supported.
    """
    if not isinstance(mapping, Mapping):
        raise UserError(f"{where or cls.__name__}: expected a mapping of options, got {mapping!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    _refuse_unknown(fields, mapping, where)
    missing = [name for name, f in fields.items() if name not in mapping and not _has_default(f)]
    if missing:
        raise UserError(f"missing option {_join(where, missing[0])}")
    return cls(**{key: _coerce(hints[key], value, _join(where, key)) for key, value in mapping.items()})


def check_types(types: Mapping[str, Any], mapping: Mapping[str, Any], where: str) -> None:
    """Refuse what :func:`from_mapping` would refuse of a dataclass with such fields, but for the ranges of its ``__post_init__``.

    Raises:
        UserError: Unknown or ill-typed key; the message names it.
    """
    _refuse_unknown(types, mapping, where)
    for key, value in mapping.items():
        _coerce(types[key], value, _join(where, key))


def _refuse_unknown(fields: Mapping[str, object], mapping: Mapping[str, Any], where: str) -> None:
    for key in mapping:
        if key not in fields:
            raise UserError(_unknown_option(str(key), fields, where))


def to_plain(value: Any) -> Any:
    """Turn dataclasses, mappings and sequences into what JSON can hold: dicts with text keys, lists, numbers, texts, null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _unknown_option(key: str, fields: Mapping[str, object], where: str) -> str:
    near = nearest(key, fields)
    if near is not None:
        return f"unknown option {_join(where, key)}; did you mean {_join(where, near)}?"
    options = ", ".join(_join(where, name) for name in fields) or "none"
    return f"unknown option {_join(where, key)}; options are: {options}"


def _coerce(hint: Any, value: Any, key: str) -> Any:
    """The value as the hinted type, or a UserError naming the key, what was expected and what came."""
    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return _coerce_literal(args, value, key)
    if origin in (Union, types.UnionType):
        return _coerce_union(hint, args, value, key)
    if origin is tuple:
        return _coerce_tuple(hint, args, value, key)
    if isinstance(origin or hint, type) and issubclass(origin or hint, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong_type(hint, value, key)
        return dict(value)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_mapping(hint, value, key)  # type: ignore[arg-type]
    return _coerce_scalar(hint, value, key)


def _coerce_scalar(hint: Any, value: Any, key: str) -> Any:
    if hint not in _NAMES:
        raise TypeError(f"{key}: options of type {hint} are not supported")
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        require(abs(value) <= sys.float_info.max, key, "a finite number", value)
        return float(value)
    if type(value) is not hint:
        raise _wrong_type(hint, value, key)
    return value


def _coerce_literal(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    near = nearest(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else None
    hint = f"; did you mean {near!r}?" if near else ""
    raise UserError(f"{key}: expected {_describe(Literal[choices])}, got {value!r}{hint}")


def _coerce_union(hint: Any, members: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None and type(None) in members:
        return None
    real = [member for member in members if member is not type(None)]
    if len(real) == 1:
        return _coerce(real[0], value, key)
    # An exact type wins over a conversion, so that 3 stays an integer in ``float | int``.
    for member in sorted(real, key=lambda m: m is not type(value)):
        with suppress(UserError):
            return _coerce(member, value, key)
    raise _wrong_type(hint, value, key)


def _coerce_tuple(hint: Any, args: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _wrong_type(hint, value, key)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_coerce(args[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if len(value) != len(args):
        raise _wrong_type(hint, value, key)
    return tuple(_coerce(arg, item, f"{key}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))


def _wrong_type(hint: Any, value: Any, key: str) -> UserError:
    return UserError(f"{key}: expected {_describe(hint)}, got {value!r}")


def _describe(hint: Any) -> str:
    """A type in words for a message."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args)) if len(args) > 1 else repr(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"a list, each item {_describe(args[0])}"
        return f"a list of {len(args)} items"
    return _NAMES.get(hint, "a mapping")
