"""Which page lies where: the set-associative index in engines that decide alike, and the log."""

from __future__ import annotations

from typing import Literal

from kvtier.errors import SettingsError
from kvtier.index.cpu import NumbaIndex
from kvtier.index.interface import IndexSnapshot, PageIndex
from kvtier.index.log import LogIndex
from kvtier.index.log_geometry import LogGeometry, log_geometry
from kvtier.index.reference import ReferenceIndex

IndexEngine = Literal["numba", "reference"]

__all__ = [
    "IndexEngine",
    "IndexSnapshot",
    "LogGeometry",
    "LogIndex",
    "PageIndex",
    "create_index",
    "log_geometry",
]


def create_index(
    slots: int, ways: int = 16, seed: int = 1, engine: IndexEngine = "numba"
) -> PageIndex:
    """An empty index, its compiled parts ready.

    Args:
        slots: rounded down to whole sets, but at least one set.
        ways: slots of a set: 8, 16 or 32.
        seed: any integer; its low 64 bits choose which pages share a set.
        engine: ``numba``, or ``reference`` (plain Python, the oracle of the tests).

    Raises:
        SettingsError: ``slots``, ``ways`` or ``engine`` is not possible.
    """
    if engine == "numba":
        return NumbaIndex(slots, ways, seed)
    if engine == "reference":
        return ReferenceIndex(slots, ways, seed)
    raise SettingsError(f"index engine {engine!r} is unknown: it must be numba or reference")
