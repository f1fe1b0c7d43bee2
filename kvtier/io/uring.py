"""The engine of Linux: an io_uring, driven by the thread of the event loop."""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import Final

from kvtier.errors import DeviceError, LimitError
from kvtier.io.engine import RESULT, cut_writes, join_writes, pack_extents
from kvtier.io.file import OpenFile
from kvtier.io.gate import Gate, outlast
from kvtier.io.ring import Ring, explain
from kvtier.io.ring_queue import BATCHES_MAX, WRITE_BATCHES_MAX, RingQueue
from kvtier.pages import I64, U8


class UringEngine:
    """Hands batches to the kernel, and hears of their ends by an eventfd in the event loop.

    It belongs to the event loop that uses it first, until that is closed; another one is refused
    with LimitError. The loop may go on in another thread when nothing is under way.

    Args:
        file: taken over, closed by ``close``.
        queue_depth: operations in flight at once.
        ring: made by this thread for that depth; taken over.
    """

    name: Final = "uring"

    def __init__(self, file: OpenFile, queue_depth: int, ring: Ring) -> None:
        self.direct = file.direct
        self.alignment_bytes = file.alignment_bytes
        self._file = file
        self._depth = queue_depth
        self._pinned: U8 | None = None
        self._open = True
        self._turn_is_due = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gates = self._new_gates()
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._take(ring)

    async def read(self, offsets_bytes: I64, lengths_bytes: I64, out: U8, rows: I64) -> I64:
        """See :meth:`FileEngine.read`."""
        table = pack_extents(offsets_bytes, lengths_bytes, out, rows, self.alignment_bytes)
        return await self._move(False, table, out)

    async def write(self, offsets_bytes: I64, lengths_bytes: I64, source: U8, rows: I64) -> I64:
        """See :meth:`FileEngine.write`."""
        table = pack_extents(offsets_bytes, lengths_bytes, source, rows, self.alignment_bytes)
        pieces, memory = cut_writes(table, source)
        await self._move(True, pieces, memory)
        return join_writes(table, pieces)

    def pin(self, memory: U8) -> None:
        """See :meth:`FileEngine.pin`."""
        self._pinned = memory
        if not self._queue.busy and not self._queue.ring.foreign:
            self._queue.pin(memory)

    async def close(self) -> None:
        """See :meth:`FileEngine.close`."""
        loop = asyncio.get_running_loop()
        if self._open and self._is_away(loop):
            self._move_to(loop)
        for gate in self._gates:
            gate.shut()
        for gate in self._gates:
            await gate.close()
        if self._open:
            self._open = False
            loop.remove_reader(self._queue.ring.event_fd)
            self._finalizer()
            os.close(self._file.fd)

    async def _move(self, writing: bool, table: I64, memory: U8) -> I64:
        loop = asyncio.get_running_loop()
        if self._open and self._is_away(loop):
            self._move_to(loop)
        gate = self._gates[writing]
        await gate.enter(1)
        try:
            if table.shape[1]:
                await self._perform(loop, self._queue.begin(writing, table, memory))
        finally:
            gate.leave(1)
        results: I64 = table[RESULT]
        return results

    async def _perform(self, loop: asyncio.AbstractEventLoop, slot: int) -> None:
        """Start the batch of ``slot``, and wait until it has ended, even when cancelled."""
        ended = self._waiting[slot] = loop.create_future()
        if not self._queue.full:  # else the next end of an operation gives it its turn
            self._turn()
        if ended.done():  # the kernel had the bytes at hand
            return
        try:
            await ended
        except asyncio.CancelledError:
            # It may have ended all the same, and its slot be another's by now.
            if self._waiting.get(slot) is ended:
                ended = self._waiting[slot] = loop.create_future()
                await outlast(ended)
            raise

    def _turn(self, *, woken: bool = False) -> None:
        for slot in self._queue.turn(woken=woken):
            ended = self._waiting.pop(slot)
            if not ended.done():
                ended.set_result(None)
        if self._queue.unfinished and not self._turn_is_due:
            assert self._loop is not None
            self._turn_is_due = True
            self._loop.call_soon(self._go_on)

    def _wake(self) -> None:
        self._turn(woken=True)

    def _go_on(self) -> None:
        self._turn_is_due = False
        if self._open:
            self._turn()

    def _take(self, ring: Ring) -> None:
        self._queue = RingQueue(ring, self._file, self._depth)
        if self._pinned is not None:
            self._queue.pin(self._pinned)
        # An engine that nobody closed must not leave the kernel writing into memory let go.
        self._finalizer = weakref.finalize(self, self._queue.close)

    def _new_gates(self) -> tuple[Gate, Gate]:
        """For batches that read, and for those that write."""
        name = str(self._file.path)
        return Gate(BATCHES_MAX - WRITE_BATCHES_MAX, name), Gate(WRITE_BATCHES_MAX, name)

    def _is_away(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether the engine works for another loop, or for this one in another thread."""
        return loop is not self._loop or self._queue.ring.foreign

    def _move_to(self, loop: asyncio.AbstractEventLoop) -> None:
        """Work for ``loop`` from now on, in this thread.

        Raises:
            LimitError: another loop may still use the engine, or another thread's operations are
                under way.
            DeviceError: this thread needs a ring of its own, and the kernel gives none.
        """
        if loop is self._loop:
            if self._queue.busy:
                raise LimitError(
                    f"{self._file.path} has operations under way of the thread that ran this event "
                    "loop before: let them end there first"
                )
            loop.remove_reader(self._queue.ring.event_fd)
        elif self._loop is not None and not self._loop.is_closed():
            raise LimitError(
                f"{self._file.path} is open in another event loop: open it in each loop by itself"
            )
        if self._queue.ring.foreign:
            self._finalizer()
            try:
                ring = Ring(self._depth)
            except OSError as error:
                raise DeviceError(f"no io_uring for {self._file.path}: {explain(error)}") from error
            self._take(ring)
        else:
            self._queue.drain()  # what the closed loop left behind
        self._waiting.clear()
        self._gates = self._new_gates()
        self._turn_is_due = False
        self._loop = loop
        loop.add_reader(self._queue.ring.event_fd, self._wake)
