"""What changes the heads: publishing and removing. One thread does it, one call after the other.

Mooncake tells writers apart by their client. Two threads of one client that put the same head
would end each other's writing, and a head would show before its bytes are there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np

from kvtier.pages import U8
from kvtier_mooncake.codes import BUSY, HAS_LEASE, NO_MASTER, NOT_READY
from kvtier_mooncake.heads import PAUSES_S, Found, find_heads
from kvtier_mooncake.layout import HEAD_BYTES, Head, NamedHead, chunk_names, pack_head
from kvtier_mooncake.limits import NAMES_AT_ONCE, VALUES_AT_ONCE

_LEFT_OVER_MAX: Final = 1 << 16
_SWEEP_PAUSE_S: Final = 1.0
_KEPT: Final = frozenset({HAS_LEASE, NOT_READY}) | NO_MASTER


class Publisher:
    """Puts and removes heads, and clears away the chunks that no head names any more.

    A chunk that is being read has a lease and cannot be removed before it ends. Such chunks are
    tried again by later calls; what is never got rid of is evicted by Mooncake, because nobody
    reads it.

    Args:
        store: Mooncake's client.
        config: of what is put: ``mooncake.store.ReplicateConfig``.
    """

    def __init__(self, store: Any, config: Any) -> None:
        self._store = store
        self._config = config
        self._left_over: deque[str] = deque(maxlen=_LEFT_OVER_MAX)
        self._sweep_at_s = 0.0

    def publish(self, objects: Sequence[NamedHead], slot: U8) -> list[int]:
        """Put heads in place of those before them; a code for each, 0 where that worked."""
        before = find_heads(self._store, [name for name, _ in objects], slot)

        def put(items: Sequence[int]) -> list[int]:
            return self._put([objects[item] for item in items], slot)

        codes = _repeated(put, before)
        for (name, head), old, code in zip(objects, before, codes, strict=True):
            self._leave(name, head if code else old)
        self.sweep()
        return codes

    def remove(self, names: Sequence[str], slot: U8) -> list[int]:
        """Remove heads; a code for each."""
        before = find_heads(self._store, names, slot)

        def remove(items: Sequence[int]) -> list[int]:
            # By force, though somebody may be reading it: a head is known by its checksum.
            some = [names[item] for item in items]
            result: list[int] = self._store.batch_remove(some, True) if some else []
            return result

        codes = _repeated(remove, before)
        for name, old, code in zip(names, before, codes, strict=True):
            if code == 0:
                self._leave(name, old)
        self.sweep()
        return codes

    def discard(self, chunks: Iterable[str]) -> None:
        """Take note of chunks that no head will name."""
        self._left_over.extend(chunks)

    def sweep(self) -> None:
        """Remove what is left over, as far as nobody reads it."""
        now_s = time.monotonic()
        if not self._left_over or now_s < self._sweep_at_s:
            return
        count = min(len(self._left_over), NAMES_AT_ONCE)
        names = [self._left_over.popleft() for _ in range(count)]
        codes = self._store.batch_remove(names, False)
        kept = [name for name, code in zip(names, codes, strict=True) if code in _KEPT]
        self._left_over.extend(kept)
        if kept:
            self._sweep_at_s = now_s + _SWEEP_PAUSE_S

    def _leave(self, name: str, head: Found) -> None:
        if isinstance(head, Head):
            self._left_over.extend(chunk_names(name, head))

    def _put(self, objects: Sequence[NamedHead], slot: U8) -> list[int]:
        codes: list[int] = []
        address = slot.ctypes.data
        for first in range(0, len(objects), VALUES_AT_ONCE):
            some = objects[first : first + VALUES_AT_ONCE]
            records = b"".join(pack_head(name, head) for name, head in some)
            slot[: len(records)] = np.frombuffer(records, np.uint8)
            starts = range(address, address + len(records), HEAD_BYTES)
            codes += self._store.batch_upsert_from(
                [name for name, _ in some], list(starts), [HEAD_BYTES] * len(some), self._config
            )
        return codes


def _repeated(call: Callable[[Sequence[int]], list[int]], before: Sequence[Found]) -> list[int]:
    """The codes of all items, called again for those that another client keeps busy.

    Args:
        call: gives the codes of some items.
        before: what was found of each; where that was no master, none is called.
    """
    lost = NO_MASTER.intersection(before)
    if lost:
        return [min(lost)] * len(before)
    codes = call(range(len(before)))
    for pause_s in PAUSES_S:
        again = [item for item, code in enumerate(codes) if code in BUSY]
        if not again:
            break
        time.sleep(pause_s)
        for item, code in zip(again, call(again), strict=True):
            codes[item] = code
    return codes
