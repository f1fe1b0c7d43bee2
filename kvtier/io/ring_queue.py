"""Batches of one file on one ring, without an event loop: begun, told when ended, drained.

Whatever the kernel may still write to is held here, and let go only when the kernel has ended it.
"""

from __future__ import annotations

import os
from typing import Final

import numpy as np

from kvtier.io.engine import writes_beside_reads, writes_max
from kvtier.io.file import OpenFile
from kvtier.io.ring import Ring
from kvtier.io.ring_turn import (
    BATCH_WORDS,
    DEPTH,
    FILE,
    PINNED_END,
    PINNED_START,
    QUEUE_HEADS,
    QUEUE_TAILS,
    STATE_WORDS,
    UNDER_WAY,
    UNFINISHED,
    WRITES_BESIDE_READS,
    WRITES_MAX,
    WRITES_NOW,
    compile_enqueue,
    enqueue,
    turn,
)
from kvtier.pages import I64, U8

BATCHES_MAX: Final = 256
"""Batches begun at once, reads and writes together."""

WRITE_BATCHES_MAX: Final = 32
"""Of those, at most so many are writes: there is always a slot for a read."""

_FLAG_FIXED_FILE: Final = 1 << 0

_lost: list[object] = []
"""Memory that a kernel which cannot be asked any more may still write to: never given back."""


class RingQueue:
    """What is under way on a ring. Used by the thread that made the ring.

    Args:
        ring: taken over, closed by ``close``.
        file: stays open.
        depth: operations under way at once, at most what the ring was made for.
    """

    def __init__(self, ring: Ring, file: OpenFile, depth: int) -> None:
        self.ring = ring
        ring.register_file(file.fd)
        self._state = np.zeros(STATE_WORDS, np.int64)
        self._state[FILE] = _FLAG_FIXED_FILE << 8 if ring.fixed_file else file.fd << 32
        self._state[DEPTH] = depth
        self._state[WRITES_MAX] = self._state[WRITES_NOW] = writes_max(depth)
        self._state[WRITES_BESIDE_READS] = writes_beside_reads(depth)
        self._batches = np.zeros((BATCHES_MAX, BATCH_WORDS), np.int64)
        self._queue = np.zeros((2, BATCHES_MAX), np.int64)
        self._ended = np.zeros(BATCHES_MAX, np.int64)
        self._free = list(range(BATCHES_MAX))
        self._held: dict[int, tuple[U8, I64]] = {}
        self._pinned: U8 | None = None
        # Compiled now, not inside the first request.
        compile_enqueue()
        self.turn()

    @property
    def busy(self) -> bool:
        """Batches are under way."""
        return bool(self._held)

    @property
    def full(self) -> bool:
        """As many operations are under way as may be."""
        return bool(self._state[UNDER_WAY] >= self._state[DEPTH])

    @property
    def unfinished(self) -> bool:
        """The last turn ended early: another one is due, without an event."""
        return bool(self._state[UNFINISHED])

    def pin(self, memory: U8) -> None:
        """Have the kernel pin this memory alone, if it can; nothing is under way."""
        if self._pinned is not None:
            self.ring.unregister_buffer()
            self._pinned = None
        self._state[PINNED_START] = self._state[PINNED_END] = 0
        if self.ring.register_buffer(memory):
            # Held: were it unmapped, its address might come back with other memory behind it.
            self._pinned = memory
            self._state[PINNED_START] = memory.ctypes.data
            self._state[PINNED_END] = memory.ctypes.data + memory.nbytes

    def begin(self, writing: bool, table: I64, memory: U8) -> int:
        """Queue a batch of at least one extent; a turn starts it. There is a free slot.

        Args:
            writing: memory to file; otherwise file to memory.
            table: i64[4, n] of :func:`kvtier.io.engine.pack_extents`; its results are filled in.
            memory: u8[rows, row_bytes].

        Returns:
            The slot by which a turn will tell of it.
        """
        slot = self._free.pop()
        enqueue(self._state, self._batches, self._queue, slot, table, memory, writing)
        self._held[slot] = (memory, table)
        return slot

    def turn(self, *, woken: bool = False, wait: bool = False) -> list[int]:
        """Begin what fits, and tell the slots of the batches that ended; they are free again.

        Args:
            woken: the ring's eventfd is readable.
            wait: block until at least one operation has ended, if one is under way.

        Raises:
            OSError: the kernel cannot be asked what has ended.
        """
        ring = self.ring
        count = turn(
            *(ring.words, ring.sqes, ring.cqes),
            *(self._state, self._batches, self._queue, self._ended),
            *(woken, wait),
        )
        if count < 0:
            raise OSError(-count, os.strerror(-count))
        ended: list[int] = self._ended[:count].tolist()
        for slot in ended:
            del self._held[slot]
        self._free += ended
        return ended

    def drain(self) -> None:
        """Begin nothing more, and wait for what is under way; then forget all batches."""
        self._state[QUEUE_HEADS : QUEUE_HEADS + 2] = self._state[QUEUE_TAILS : QUEUE_TAILS + 2]
        try:
            while self._state[UNDER_WAY]:
                self.turn(wait=True)
        except OSError:
            _lost.append(self._held)
        self._held = {}
        self._free = list(range(BATCHES_MAX))

    def close(self) -> None:
        """Drain, and give the ring back; a second call does nothing."""
        if self.ring.fd < 0:
            return
        if self.ring.foreign:
            if self._held:
                _lost.append((self._held, self._pinned))
        else:
            self.drain()
            if self._pinned is not None:
                self.ring.unregister_buffer()
        self.ring.close()
        self._pinned = None
