"""Sizes, times and rates as people write them: a number and a unit.

A size may be a plain number, which counts bytes. A time and a rate must name their unit: no reader
could tell whether ``80`` meant seconds or microseconds. Units are case-sensitive, because a
``Gb`` is not a ``GB``. Decimal prefixes are powers of 1000, ``Ki``, ``Mi``… powers of 1024.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final

from kvtier.errors import SettingsError

SIZE_BYTES_MAX: Final = (1 << 63) - 1

_SIZES: Final[Mapping[str, Decimal]] = {
    "B": Decimal(1),
    **{f"{prefix}B": Decimal(1000 ** (i + 1)) for i, prefix in enumerate("kMGTP")},
    **{f"{prefix}iB": Decimal(1024 ** (i + 1)) for i, prefix in enumerate("KMGTP")},
    "KB": Decimal(1000),
}
_TIMES: Final[Mapping[str, Decimal]] = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "min": Decimal(60),
    "h": Decimal(3600),
}
_RATES: Final[Mapping[str, Decimal]] = {f"{unit}/s": scale for unit, scale in _SIZES.items()}

# No exponents and no more than 18 digits: whatever matches is finite as a float.
_QUANTITY: Final = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(\S+)\s*")


def parse_bytes(value: object, name: str = "size") -> int:
    """Bytes of a size such as ``"64 GiB"``, ``"1.5MB"`` or ``4096`` (plain: bytes).

    Args:
        value: text with a unit, or an int.
        name: what the size is of, for the message.

    Raises:
        SettingsError: it is no size, negative, or beyond 2**63 - 1 bytes.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        size = round(_parse(value, _SIZES, f"{name}: {value!r} is no size; write e.g. '64 GiB'"))
    if not 0 <= size <= SIZE_BYTES_MAX:
        raise SettingsError(f"{name}: {value!r} is out of range; a size is 0 to 2**63 - 1 bytes")
    return size


def parse_seconds(value: object, name: str = "time") -> float:
    """Seconds of a time such as ``"80 us"`` or ``"1.5 ms"``. A plain number is refused.

    Raises:
        SettingsError: it is no time, or has no unit.
    """
    return float(_parse(value, _TIMES, f"{name}: {value!r} is no time; write e.g. '80 us'"))


def parse_rate(value: object, name: str = "rate") -> float:
    """Bytes per second of a rate such as ``"7 GB/s"``. A plain number is refused.

    Raises:
        SettingsError: it is no rate, or has no unit.
    """
    return float(_parse(value, _RATES, f"{name}: {value!r} is no rate; write e.g. '7 GB/s'"))


def _parse(value: object, units: Mapping[str, Decimal], refusal: str) -> Decimal:
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        raise SettingsError(refusal)
    return Decimal(match[1]) * units[match[2]]


def format_bytes(count: float) -> str:
    """A size in binary units with three digits: ``64 GiB``, ``1.50 MiB``, ``513 B``."""
    return _format(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def format_rate(bytes_per_s: float) -> str:
    """A rate in decimal units: ``7 GB/s``, ``1.25 MB/s``."""
    return _format(bytes_per_s, 1000, ("B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s"))


def format_count(count: float) -> str:
    """A count in decimal steps: ``950``, ``13.4 k``, ``150 M``."""
    return _format(count, 1000, ("", "k", "M", "G", "T", "P")).rstrip()


def format_seconds(seconds: float) -> str:
    """A time in the unit that suits it: ``80 us``, ``1.50 ms``, ``12.3 s``, ``5 min``."""
    if seconds >= 120:
        return f"{_digits(seconds / 60)} min"
    if seconds >= 1:
        return f"{_digits(seconds)} s"
    return _format(seconds * 1e9, 1000, ("ns", "us", "ms", "s"))


def _format(value: float, step: int, units: tuple[str, ...]) -> str:
    # 0.9995 of a step already prints as a whole one: the next unit says it shorter.
    index = 0
    while abs(value) >= step * 0.9995 and index < len(units) - 1:
        value /= step
        index += 1
    return f"{_digits(value)} {units[index]}"


def _digits(value: float) -> str:
    """Three significant digits; whole numbers bare."""
    if not math.isfinite(value):
        return str(value)
    if math.isclose(value, round(value), rel_tol=1e-9) or abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"
