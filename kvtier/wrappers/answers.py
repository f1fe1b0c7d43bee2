"""What a store's answer says of the store: shared by the wrappers that judge it."""

from __future__ import annotations

import numpy as np

from kvtier.backend import ObjectStats, PutResult
from kvtier.errors import BackendError
from kvtier.pages import U8, Bool, PageStatus


def failed_items(status: U8) -> Bool:
    """Which items (bool[n]) of a status got no answer that means anything."""
    failed: Bool = (status != PageStatus.OK) & (status != PageStatus.ABSENT)
    return failed


def checked_status(status: U8, items: int) -> U8:
    """Believe no plugin: an answer of another shape says nothing of any item.

    Raises:
        BackendError: it is not u8[items].
    """
    if status.shape != (items,) or status.dtype != np.uint8:
        raise BackendError(
            f"the store answered {status.dtype}{list(status.shape)} for {items} items: "
            f"uint8[{items}] is needed"
        )
    return status


def checked_put(result: PutResult, objects: int) -> PutResult:
    """As :func:`checked_status`, of a put of so many objects."""
    checked_status(result.status, objects)
    if result.versions.shape != (objects,) or result.versions.dtype != np.uint64:
        raise BackendError(f"the store gave {len(result.versions)} versions to {objects} objects")
    return result


def checked_stats(stats: ObjectStats, keys: int) -> ObjectStats:
    """As :func:`checked_status`, of a stat of so many keys."""
    if stats.pages.shape != (keys,) or stats.versions.shape != (keys,):
        raise BackendError(
            f"the store's stat answered {list(stats.pages.shape)} pages and "
            f"{list(stats.versions.shape)} versions for {keys} keys"
        )
    return stats
