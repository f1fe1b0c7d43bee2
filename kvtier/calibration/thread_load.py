"""A load moved by threads, each with one operation under way: where there is no io_uring.

The operations are moved by the compiled call of the I/O engine ``threads``; what is added is a time
stamp before and after each.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtier.calibration.load import NS_PER_S, Load, Operations
from kvtier.errors import DeviceError
from kvtier.io.engine import LENGTH, OFFSET, RESULT, ROW
from kvtier.io.file import OpenFile
from kvtier.io.libc import clock_gettime
from kvtier.io.posix import move_extents
from kvtier.jit import jit
from kvtier.pages import I64, U8
from kvtier.rows import aligned_rows

_CALL_NS: Final = 25_000_000
"""How long one compiled call goes on, so that Ctrl-C is heard."""

_OPERATIONS_PER_CALL: Final = 1 << 12
_OFFSETS: Final = 1 << 13
"""Random offsets of each thread; it starts again after the last."""

_CLOCK: Final = time.CLOCK_MONOTONIC


def run_threads(
    file: OpenFile, size_bytes: int, load: Load, seconds: float, rng: np.random.Generator
) -> Operations:
    """See :func:`kvtier.calibration.running.run_load`."""
    workers = [_Worker(file, size_bytes, load, rng) for _ in range(load.depth)]
    workers[0].work(until_ns=0)  # no operation: it is compiled before the time begins
    began_ns = time.monotonic_ns()
    taken_ns = round(seconds * NS_PER_S)
    try:
        for worker in workers:
            worker.until_ns = began_ns + taken_ns
            worker.start()
        for worker in workers:
            worker.join()
    except BaseException:
        for worker in workers:
            worker.stop()
        for worker in workers:
            if worker.ident is not None:  # it was started
                worker.join()
        raise
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    stamps = np.concatenate([part for worker in workers for part in worker.parts], axis=1)
    stamps = stamps[:, np.argsort(stamps[1], kind="stable")] - began_ns
    return Operations(stamps[0], stamps[1], taken_ns)


class _Worker(threading.Thread):
    """One operation after the other until the time is over.

    Attributes:
        until_ns: when it ends, by the monotonic clock.
        parts: i64[2, n], starts and ends, of each compiled call.
        error: why it ended early.
    """

    def __init__(
        self,
        file: OpenFile,
        size_bytes: int,
        load: Load,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(name="kvtier-load", daemon=True)
        self.until_ns = 0
        self.parts: list[I64] = []
        self.error: BaseException | None = None
        self._file = file
        self._offsets = rng.integers(0, size_bytes // load.io_bytes, _OFFSETS) * load.io_bytes
        self._writes = rng.random(_OFFSETS) < load.write_share
        self._memory = aligned_rows(1, load.io_bytes)
        self._memory[0] = np.frombuffer(rng.bytes(load.io_bytes), np.uint8)

    def run(self) -> None:
        try:
            self.work(self.until_ns)
        except BaseException as error:  # whoever started the load gets it
            self.error = error

    def stop(self) -> None:
        """End after the call under way."""
        self.until_ns = 0

    def work(self, until_ns: int) -> None:
        """Operate until then, in this thread; one compiled call at least."""
        clock = np.zeros(2, np.int64)
        table = np.zeros((4, 1), np.int64)
        done = 0
        while True:
            now_ns = time.monotonic_ns()
            stamps = np.empty((2, _OPERATIONS_PER_CALL), np.int64)
            count = _drive(
                self._file.fd,
                self._memory,
                self._memory.ctypes.data,
                self._offsets,
                self._writes,
                done,
                min(until_ns, now_ns + _CALL_NS),
                clock,
                clock.ctypes.data,
                table,
                stamps,
            )
            if count < 0:
                result = int(table[RESULT, 0])
                reason = os.strerror(-result) if result < 0 else "it has become shorter"
                raise DeviceError(f"{self._file.path}: I/O failed: {reason}; choose another path")
            done += count
            self.parts.append(stamps[:, :count])
            if now_ns >= min(until_ns, self.until_ns):
                return


@jit
def _drive(
    fd: int,
    memory: U8,
    address: int,
    offsets: I64,
    writes: NDArray[np.bool_],
    first: int,
    until_ns: int,
    clock: I64,
    clock_address: int,
    table: I64,
    stamps: I64,
) -> int:
    """Operations from number ``first`` on, until then or ``stamps`` is full; -1 if one failed.

    The first of all is done however late it is, unless ``until_ns`` is 0.
    """
    io_bytes = memory.shape[1]
    count = 0
    clock_gettime(np.int32(_CLOCK), clock_address)
    now_ns = clock[0] * NS_PER_S + clock[1]
    while count < stamps.shape[1] and (now_ns < until_ns or (first + count == 0 and until_ns > 0)):
        at = (first + count) % offsets.size
        table[OFFSET, 0] = offsets[at]
        table[LENGTH, 0] = io_bytes
        table[ROW, 0] = 0
        move_extents(writes[at], fd, address, io_bytes, table, 0, 1)
        if table[RESULT, 0] != io_bytes:
            return -1
        stamps[0, count] = now_ns
        clock_gettime(np.int32(_CLOCK), clock_address)
        now_ns = clock[0] * NS_PER_S + clock[1]
        stamps[1, count] = now_ns
        count += 1
    return count
