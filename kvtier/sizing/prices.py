"""What a level costs. The presets are round assumptions, labelled as such, and no quotes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from kvtier.errors import SettingsError
from kvtier.settings.document import parse_document
from kvtier.units import parse_bytes

GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Price:
    """What one level costs, and what that buys.

    Attributes:
        dollars_per_gib: of capacity.
        device_bytes: capacity of one device, in TOML ``device``; the capacity of a tier is a
            share of it, or several. Its price pays for the device's accesses too.
        source: where the figures come from.
        drive_writes_per_day: how often the whole device may be overwritten each day of
            ``warranty_years``; None for what does not wear.
        warranty_years: None for what does not wear.
    """

    dollars_per_gib: float
    device_bytes: int
    source: str
    drive_writes_per_day: float | None = None
    warranty_years: float | None = None

    @property
    def dollars_per_device(self) -> float:
        return self.dollars(self.device_bytes)

    def dollars(self, capacity_bytes: int) -> float:
        """The price of so much capacity."""
        return self.dollars_per_gib * capacity_bytes / GIB


Prices = Mapping[str, Price]
"""By level: ``hbm``, ``dram``, ``nvme``, ``origin``."""

_ADVICE: Final = "change it with --prices"

PRESETS: Final[Prices] = {
    "hbm": Price(
        200.0,
        128 * GIB,
        "assumed: an opportunity price, as memory that caches holds no weights or KV of running "
        f"requests: a GPU of $25,600 by its 128 GiB; {_ADVICE}",
    ),
    "dram": Price(
        5.0,
        512 * GIB,
        f"assumed: $5 per GiB; 512 GiB of host memory behind the PCIe link of each GPU; {_ADVICE}",
    ),
    "nvme": Price(
        0.125,
        4096 * GIB,
        "assumed: a drive of 4 TiB for $512, rated for 1 drive write per day over 5 years, as "
        f"read-intensive drives are; {_ADVICE}",
        drive_writes_per_day=1.0,
        warranty_years=5.0,
    ),
    "origin": Price(
        0.05,
        200 * 1024 * GIB,
        "assumed: a storage server of 200 TiB with its network for $10,240, bought, no rent; "
        f"{_ADVICE}",
    ),
}

_LEAST: Final = 1e-9
_MOST: Final = 1e12
"""Bounds of a price and of an endurance, so that whatever is made of them is finite."""

_KEYS: Final = {
    "device" if field.name == "device_bytes" else field.name: field.name for field in fields(Price)
}


def load_prices(path: Path | None) -> Prices:
    """The presets, with what a TOML file changes: a table per level, keys as of :class:`Price`.

    Raises:
        SettingsError: the file cannot be read, a level or key is unknown, or a value is no
            positive number or size. One line that names the file and the key.
    """
    if path is None:
        return PRESETS
    try:
        document = parse_document(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--prices {path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"--prices {path}: is no TOML: {error}") from error
    prices = dict(PRESETS)
    for level, table in document.items():
        if level not in PRESETS:
            raise SettingsError(f"{path}: unknown level {level}; {_nearest(level, PRESETS)}")
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: {level} is {table!r}: it must be a table, [{level}]")
        prices[level] = _changed(prices[level], level, table, path)
    return prices


def _changed(price: Price, level: str, table: Mapping[str, Any], path: Path) -> Price:
    values: dict[str, Any] = {"source": f"given in {path.name}; what is left out: {price.source}"}
    for key, value in table.items():
        if key not in _KEYS:
            raise SettingsError(f"{path}: unknown key {level}.{key}; {_nearest(key, _KEYS)}")
        values[_KEYS[key]] = _checked(f"{path}: {level}.{key}", key, value)
    changed = replace(price, **values)
    if (changed.drive_writes_per_day is None) != (changed.warranty_years is None):
        raise SettingsError(
            f"{path}: {level}: endurance is drive_writes_per_day and warranty_years: give both"
        )
    return changed


def _checked(where: str, key: str, value: object) -> object:
    if key == "source":
        if isinstance(value, str):
            return value
        raise SettingsError(f"{where} is {value!r}: it must be a text")
    if key == "device":
        size = parse_bytes(value, where)
        if not size:
            raise SettingsError(f"{where} is {value!r}: it must be above 0")
        return size
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingsError(f"{where} is {value!r}: it must be a number above 0")
    if not _LEAST <= value <= _MOST:
        raise SettingsError(f"{where} is {value!r}: it must be from {_LEAST:g} to {_MOST:g}")
    return value


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
