"""kvtier: a multilevel read-through page cache, from GPU memory to a remote backend."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtier.cache import OpenedObjects, ReadResult, TieredCache
    from kvtier.cache_metrics import exposition
    from kvtier.errors import KvtierError
    from kvtier.lease import Lease
    from kvtier.opening import open_cache
    from kvtier.pages import PageStatus, Purpose
    from kvtier.settings import Settings, default_settings, load_settings

__all__ = [
    "KvtierError",
    "Lease",
    "OpenedObjects",
    "PageStatus",
    "Purpose",
    "ReadResult",
    "Settings",
    "TieredCache",
    "default_settings",
    "exposition",
    "load_settings",
    "open_cache",
]

_HOMES = {
    "KvtierError": "kvtier.errors",
    "Lease": "kvtier.lease",
    "OpenedObjects": "kvtier.cache",
    "PageStatus": "kvtier.pages",
    "Purpose": "kvtier.pages",
    "ReadResult": "kvtier.cache",
    "Settings": "kvtier.settings",
    "TieredCache": "kvtier.cache",
    "default_settings": "kvtier.settings",
    "exposition": "kvtier.cache_metrics",
    "load_settings": "kvtier.settings",
    "open_cache": "kvtier.opening",
}


def __getattr__(name: str) -> object:
    """Import on first use: a backend that needs one interface must not load the compiler."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
