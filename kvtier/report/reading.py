"""Results read from files, and refused where they are none."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from kvtier.errors import SettingsError
from kvtier.report import schema

_ADDED_LATER: Final[Mapping[object, frozenset[str]]] = {
    schema.Result: frozenset(
        {"name", "by_purpose", "gpus", "models", "drive", "requests", "crossover", "serving"}
    ),
    schema.Series: frozenset({"lookups", "delivered"}),
    schema.Drive: frozenset({"gpus", "spread", "events"}),
    schema.Requests: frozenset({"queue_us"}),
    schema.Tier: frozenset(
        {
            "moved_pages",
            "written_bytes",
            "write_amplification",
            "drive_writes_per_day",
            "write_capped_pages",
        }
    ),
    schema.WrappedOrigin: frozenset({"wrappers"}),
}
"""Keys that the first files of version 1 do not have."""

_COUNT_MAX: Final = 1 << 63


class _Wrong(Exception):  # noqa: N818  # it never leaves this module
    """A value is not what the schema says."""


def read_result(path: Path) -> Mapping[str, Any]:
    """The result of a run from the file that ``--json`` wrote.

    Files of older versions lack keys, those of later ones have more: both are read.

    Raises:
        SettingsError: the file cannot be read, or is no result.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        _check(schema.Result, values, "")
        _check_series(values["series"])
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: is no JSON: {error}") from error
    except _Wrong as wrong:
        raise SettingsError(
            f"{path}: is no result of kvtier: {wrong}; name a file that `kvtier replay --json` or "
            "`kvtier simulate --json` wrote"
        ) from wrong
    result: Mapping[str, Any] = values
    return result


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _check(kind: Any, value: object, key: str) -> None:
    """``value`` at ``key`` is of the type ``kind``, one of those that the schema is made of."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        _check_finite(value, key)
    elif typing.is_typeddict(kind):
        _check_table(kind, value, key)
    elif origin is types.UnionType:
        if value is not None:
            _check(arguments[0], value, key)
    elif origin is list:
        for number, item in enumerate(_as(list, value, key)):
            _check(arguments[0], item, f"{key}.{number}")
    elif origin is dict:
        for name, item in _as(dict, value, key).items():
            _check(arguments[1], item, f"{key}.{name}")
    elif origin is Literal:
        # A later version only adds keys, so that its results can be read.
        is_later = key == "schema_version" and _as(int, value, key) >= schema.SCHEMA_VERSION
        if value not in arguments and not is_later:
            raise _Wrong(f"{key} is {value!r}")
    elif kind is float:
        _check_finite(_as((int, float), value, key), key)
    else:
        _as(kind, value, key)


def _check_finite(value: object, key: str) -> None:
    """A page that holds the result has no way to write a number beyond all bounds."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_finite(item, f"{key}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_finite(item, f"{key}.{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise _Wrong(f"{key} is {value!r}")


def _check_table(kind: Any, value: object, key: str) -> None:
    table = _as(dict, value, key or "the whole")
    for name, hint in typing.get_type_hints(kind).items():
        inner = f"{key}.{name}" if key else name
        if name in table:
            _check(hint, table[name], inner)
        elif name not in _ADDED_LATER.get(kind, ()):
            raise _Wrong(f"{inner} is missing")


def _as(kind: Any, value: Any, key: str) -> Any:
    is_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not is_kind or (isinstance(value, int) and abs(value) > _COUNT_MAX):
        raise _Wrong(f"{key} is {str(value)[:40]!r}")
    return value


def _check_series(series: Mapping[str, Any]) -> None:
    """Every column has a value for each interval."""
    columns: list[list[int]] = [series["reads"]]
    for name in ("lookups", "hits", "delivered"):
        columns += series.get(name, {}).values()
    if any(len(column) != len(series["t_s"]) for column in columns):
        raise _Wrong("the columns of series are not equally long")
