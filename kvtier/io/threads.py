"""The engine that works everywhere: blocking reads and writes in a pool of threads."""

from __future__ import annotations

import asyncio
import os
import threading
from queue import SimpleQueue
from typing import Final

import numpy as np

from kvtier.errors import DeviceError
from kvtier.io.engine import RESULT, cut_writes, join_writes, pack_extents, writes_max
from kvtier.io.file import OpenFile
from kvtier.io.gate import Gate, outlast
from kvtier.io.posix import move_extents
from kvtier.pages import I64, U8

SHARES_PER_THREAD: Final = 4
"""Shares of batches queued or running, per thread; a batch that finds no room waits."""


class ThreadEngine:
    """Splits a batch into one share per thread; a share is a single compiled call.

    Writes take only some of the threads, so that a read always finds one, if there are two.

    Args:
        file: taken over, closed by ``close``.
        queue_depth: threads, and so operations in flight at once.

    Raises:
        DeviceError: the system gives no more threads; ``file`` is closed then.
    """

    name: Final = "threads"

    def __init__(self, file: OpenFile, queue_depth: int) -> None:
        self.direct = file.direct
        self.alignment_bytes = file.alignment_bytes
        self._file = file
        self._depth = queue_depth
        # An eighth of the threads is enough to keep a drive writing.
        writers = min(writes_max(queue_depth), max(4, queue_depth // 8))
        # Shares of a batch, by whether it writes. Two batches of writes go on at a time, so that
        # there is always a next one.
        self._shares_max = queue_depth, max(1, writers // 2)
        self._gates = (
            Gate(SHARES_PER_THREAD * queue_depth, str(file.path)),
            Gate(writers, str(file.path)),
        )
        # A plain queue, not an executor: its futures cost more per share than a cached read does.
        self._shares: SimpleQueue[_Share | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        # Compiled now, not inside the first request.
        move_extents(False, file.fd, 0, 0, np.empty((4, 0), np.int64), 0, 0)
        self._start()

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
        """See :meth:`FileEngine.pin`: of no use here."""

    async def close(self) -> None:
        """See :meth:`FileEngine.close`."""
        for gate in self._gates:
            gate.shut()
        for gate in self._gates:
            await gate.close()
        if self._threads:
            self._stop()

    async def _move(self, writing: bool, table: I64, memory: U8) -> I64:
        count = table.shape[1]
        shares = min(count, self._shares_max[writing])
        gate = self._gates[writing]
        await gate.enter(shares)
        try:
            if shares:
                batch = _Batch(writing, self._file.fd, memory, table, shares)
                for share in range(shares):
                    span = (share * count // shares, (share + 1) * count // shares)
                    self._shares.put((batch, *span))
                await outlast(batch.done)
        finally:
            gate.leave(shares)
        results: I64 = table[RESULT]
        return results

    def _start(self) -> None:
        try:
            for number in range(self._depth):
                # Daemons: an engine that nobody closed must not keep the interpreter alive.
                thread = threading.Thread(
                    target=_work, args=(self._shares,), name=f"kvtier-io-{number}", daemon=True
                )
                thread.start()
                self._threads.append(thread)
        except RuntimeError as error:
            self._stop()
            raise DeviceError(
                f"cannot start {self._depth} I/O threads for {self._file.path}: {error}; "
                "lower queue_depth"
            ) from error

    def _stop(self) -> None:
        for _ in self._threads:
            self._shares.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        os.close(self._file.fd)


class _Batch:
    """A batch under way; the thread that ends its last share wakes the event loop."""

    __slots__ = (
        "_address",
        "_error",
        "_fd",
        "_left",
        "_lock",
        "_loop",
        "_memory",
        "_table",
        "_writing",
        "done",
    )

    def __init__(self, writing: bool, fd: int, memory: U8, table: I64, shares: int) -> None:
        self._writing = writing
        self._fd = fd
        self._memory = memory  # kept alive until the batch has ended
        self._address = memory.ctypes.data
        self._table = table
        self._left = shares
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self.done = self._loop.create_future()

    def move(self, first: int, last: int) -> None:
        """Do one share, in a worker's thread."""
        row_bytes = self._memory.shape[1]
        error = None
        try:
            move_extents(
                self._writing, self._fd, self._address, row_bytes, self._table, first, last
            )
        except BaseException as unexpected:  # whoever waits for the batch gets it
            error = unexpected
        with self._lock:
            self._error = self._error or error
            self._left -= 1
            ended = self._left == 0
        if ended:
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if self._error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(self._error)


_Share = tuple[_Batch, int, int]


def _work(shares: SimpleQueue[_Share | None]) -> None:
    while (share := shares.get()) is not None:
        batch, first, last = share
        batch.move(first, last)
