"""One flat dataclass per JSON line: the storage of per-case scores, so that every figure can be recomputed without model or masks.

Only fields of str, int, float, bool and optional ones of these are stored; reading checks names and types and names file and line.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar, get_args, get_origin, get_type_hints

from medplib.errors import InputError
from medplib.paths import atomic_path

T = TypeVar("T")


def to_line(record: object) -> str:
    """One JSON object without line breaks; keys in the order of the fields.

    Raises:
        InputError: a float is not finite (JSON has no word for it).
    """
    # asdict would copy every value of what is flat: most of the time of writing scores
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(where=f"{type(record).__name__}.{name}", expected="a finite number", found=str(value))
    return json.dumps(values, ensure_ascii=False)


@cache
def _allowed(cls: type) -> dict[str, tuple[tuple[type, ...], tuple[object, ...]]]:
    """Per field the accepted Python types and, for a Literal, the accepted values (empty = any)."""
    table: dict[str, tuple[tuple[type, ...], tuple[object, ...]]] = {}
    hints = get_type_hints(cls)
    for f in fields(cls):
        hint = hints[f.name]
        if get_origin(hint) is Literal:
            table[f.name] = ((str,), get_args(hint))
            continue
        options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        table[f.name] = (tuple(options) + ((int,) if float in options else ()), ())
    return table


def from_line(cls: type[T], line: str, *, where: str) -> T:
    """The dataclass stored in `line`.

    Raises:
        InputError: not JSON, a field is missing, unknown or of another type; `where` names file and line.
    """
    try:
        stored = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(where=where, expected="one JSON object per line", found=f"{error.msg} at column {error.colno}") from None
    allowed = _allowed(cls)
    if not isinstance(stored, dict) or stored.keys() != allowed.keys():
        found = sorted(stored) if isinstance(stored, dict) else type(stored).__name__
        raise InputError(where=where, expected=f"the fields {sorted(allowed)} of {cls.__name__}", found=str(found))
    for name, (accepted, values) in allowed.items():
        value = stored[name]
        # bool is an int in Python; a flag where a count belongs is a mistake.
        wrong_bool = isinstance(value, bool) and bool not in accepted
        if not isinstance(value, accepted) or wrong_bool or (values and value not in values):
            expected = f"one of {list(values)}" if values else " or ".join(t.__name__ for t in accepted)
            raise InputError(where=where, expected=f"{name!r} to be {expected}", found=repr(value))
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(where=where, expected=f"{name!r} to be finite", found=str(value))
    return cls(**{name: float(value) if float in allowed[name][0] and value is not None else value for name, value in stored.items()})


def write_lines(path: Path, records: Iterable[object]) -> int:
    """Write one line per record, atomically; returns how many were written."""
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        for record in records:
            handle.write(to_line(record) + "\n")
            count += 1
    return count


def read_lines(path: Path, cls: type[T]) -> list[T]:
    """Every record of a file written by `write_lines`.

    Raises:
        InputError: the file is missing or a line is not a `cls`; blank lines are errors too.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(where=path, expected="a readable file of scores", found=error.strerror or "no file") from None
    except UnicodeDecodeError as error:
        raise InputError(where=path, expected="UTF-8 text", found=f"byte {error.start} is not") from None
    # Not splitlines(): it also breaks at separators (U+2028) that JSON leaves unescaped inside a string.
    lines = text.removesuffix("\n").split("\n") if text else []
    return [from_line(cls, line, where=f"{path}:{number}") for number, line in enumerate(lines, 1)]
