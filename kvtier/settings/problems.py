"""What is wrong with settings: how checks say it, and the check of a range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

COUNT_MAX: Final = (1 << 31) - 1
"""Bound of every count of pages or requests: far above use, and arithmetic on it stays in i64."""


class Problem(NamedTuple):
    """What is wrong: the dotted key as a TOML file has it, and a sentence that begins with it."""

    key: str
    sentence: str


def outside(
    key: str, value: float, low: float, high: float, show: Callable[[float], str] = str
) -> Iterator[Problem]:
    """A problem unless ``low <= value <= high``; not a number is outside."""
    if not low <= value <= high:
        yield Problem(key, f"{key} is {show(value)}: it must be from {show(low)} to {show(high)}")


def given_outside(
    key: str, value: float | None, low: float, high: float, show: Callable[[float], str] = str
) -> Iterator[Problem]:
    """As :func:`outside`, of what may be left out."""
    if value is not None:
        yield from outside(key, value, low, high, show)
