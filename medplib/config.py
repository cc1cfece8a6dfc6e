"""Typed configuration from parsed JSON or YAML: strict, nested, without guessing."""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

from medplib.errors import InputError

T = TypeVar("T")


def from_dict(cls: type[T], data: dict[str, Any], *, where: str) -> T:
    """Build the dataclass `cls` from a dictionary of plain values.

    Raises:
        InputError: an unknown or missing key, named with its path below `where`.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise InputError(where=where, expected=f"keys of {cls.__name__}: {', '.join(known)}", found=", ".join(unknown))
    missing = [n for n, f in known.items() if n not in data and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise InputError(where=where, expected=f"key {missing[0]!r} of {cls.__name__}", found="nothing")
    return cls(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if is_dataclass(hint):
        return from_dict(hint, value, where=where)
    if origin is tuple:
        inner = arguments[0] if len(arguments) == 2 and arguments[1] is Ellipsis else None
        return tuple(_convert(inner if inner is not None else arguments[i], v, where) for i, v in enumerate(value))
    if origin is dict:
        return {k: _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    return value
