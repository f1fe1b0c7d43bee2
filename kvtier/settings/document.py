"""TOML from a user's hand, with bounds: what passes can be walked, shown and written again."""

from __future__ import annotations

import tomllib
from typing import Any, Final

DEPTH_MAX: Final = 32
"""Most tables and arrays inside one another."""

_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 64) - 1
_TOO_LONG: Final = "it holds a whole number of more than 64 bits"


def parse_document(text: str) -> dict[str, Any]:
    """The tables of a TOML document.

    Raises:
        ValueError: it is no TOML, is nested too deeply, or holds a whole number of more than 64
            bits, which TOML does not ask anybody to read.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # Python's own, of thousands of digits
        raise ValueError(_TOO_LONG) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    values: list[Any] = [document]
    for _ in range(DEPTH_MAX):
        inner: list[Any] = []
        for value in values:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, int) and not _INT_MIN <= value <= _INT_MAX:
                raise ValueError(_TOO_LONG)
        values = inner
    if values:
        raise ValueError(f"it is nested more than {DEPTH_MAX} deep")
    return document
