"""Heads, read by name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from kvtier.pages import U8
from kvtier_mooncake.codes import LEASE_EXPIRED, NO_MASTER, NOT_FOUND, NOT_READY
from kvtier_mooncake.layout import HEAD_BYTES, Head, unpack_head
from kvtier_mooncake.limits import VALUES_AT_ONCE

Found: TypeAlias = Head | int
"""A head, or the code of what Mooncake answered instead."""

PAUSES_S: Final = (0.0, 0.001, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256)
"""Before each further try at a head that is being written, which takes about a millisecond."""

_UNSETTLED: Final = frozenset({NOT_READY, LEASE_EXPIRED})


def find_heads(store: Any, names: Sequence[str], slot: U8) -> list[Found]:
    """The head of each name, or a code; a head whose writer is gone counts as not there.

    Args:
        store: Mooncake's client.
        names: of heads; one may come twice.
        slot: u8[slot_bytes], registered memory to read into.
    """
    # Of a name that comes twice in a call, Mooncake fills one buffer, and says that it filled both.
    distinct = list(dict.fromkeys(names))
    found: dict[str, Found] = {}
    lost: frozenset[int] = frozenset()
    for first in range(0, len(distinct), VALUES_AT_ONCE):
        some = distinct[first : first + VALUES_AT_ONCE]
        answers = _settle(store, some, slot)
        found.update(zip(some, answers, strict=True))
        lost = NO_MASTER.intersection(answers)
        if lost:  # each further call would take seconds
            break
    return [found.get(name, min(lost, default=NOT_FOUND)) for name in names]


def _settle(store: Any, names: Sequence[str], slot: U8) -> list[Found]:
    found = _read(store, names, slot)
    for pause_s in PAUSES_S:
        again = [item for item, one in enumerate(found) if one in _UNSETTLED]
        if not again:
            return found
        time.sleep(pause_s)
        for item, one in zip(
            again, _read(store, [names[item] for item in again], slot), strict=True
        ):
            found[item] = one
    return [NOT_FOUND if one in _UNSETTLED else one for one in found]


def _read(store: Any, names: Sequence[str], slot: U8) -> list[Found]:
    starts = range(0, len(names) * HEAD_BYTES, HEAD_BYTES)
    address = slot.ctypes.data
    codes = store.batch_get_into(
        list(names), [address + start for start in starts], [HEAD_BYTES] * len(names)
    )
    records = slot[: len(names) * HEAD_BYTES].tobytes()
    return [
        _unpacked(name, records[start : start + HEAD_BYTES]) if code == HEAD_BYTES else _error(code)
        for name, start, code in zip(names, starts, codes, strict=True)
    ]


def _unpacked(name: str, record: bytes) -> Found:
    head = unpack_head(name, record)
    return NOT_READY if head is None else head  # it was written, or removed, while it was read


def _error(code: int) -> int:
    """A value of another size is no head of ours."""
    return code if code < 0 else NOT_FOUND
