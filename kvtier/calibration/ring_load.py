"""A load moved by an io_uring and one thread, as the engine ``uring`` moves pages."""

from __future__ import annotations

import errno
import os
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtier.calibration.load import NS_PER_S, Load, Operations
from kvtier.errors import DeviceError
from kvtier.io.file import OpenFile
from kvtier.io.libc import clock_gettime, errno_location, load_acquire, store_release, syscall
from kvtier.io.ring import (
    CQ_HEAD,
    CQ_MASK,
    CQ_TAIL,
    FD,
    SQ_HEAD,
    SQ_MASK,
    SQ_TAIL,
    SYS_ENTER,
    Ring,
    explain,
)
from kvtier.jit import jit
from kvtier.pages import I64
from kvtier.rows import aligned_rows

_CALL_NS: Final = 25_000_000
"""How long one compiled call goes on, so that Ctrl-C is heard."""

_OPERATIONS_PER_CALL: Final = 1 << 13
_OFFSETS: Final = 1 << 16
"""Random offsets; after the last comes the first again."""

# Columns of ``state``.
_BEGUN: Final = 0
_UNDER_WAY: Final = 1
_FAILED: Final = 2
"""1: an operation did not move all of its bytes; nothing more is begun."""
_RESULT: Final = 3
"""What that one moved, or ``-errno``."""
_STATE_WORDS: Final = 4

_OP_READ: Final = 22
_OP_WRITE: Final = 23
_GETEVENTS: Final = 1
_EINTR: Final = errno.EINTR
_EAGAIN: Final = errno.EAGAIN
_EBUSY: Final = errno.EBUSY
_U32: Final = (1 << 32) - 1
_CLOCK: Final = time.CLOCK_MONOTONIC

_lost: list[object] = []
"""Memory that a kernel which cannot be asked any more may still write to: never given back."""


def run_ring(
    file: OpenFile, size_bytes: int, load: Load, seconds: float, rng: np.random.Generator
) -> Operations:
    """See :func:`kvtier.calibration.running.run_load`."""
    try:
        ring = Ring(load.depth)
    except OSError as error:
        raise DeviceError(f"no io_uring for {file.path}: {explain(error)}") from error
    loop = _Loop(ring, file, size_bytes, load, rng)
    taken_ns = round(seconds * NS_PER_S)
    try:
        loop.work(until_ns=0)  # no operation: it is compiled before the time begins
        began_ns = time.monotonic_ns()
        loop.work(began_ns + taken_ns)
    finally:
        loop.close()
    loop.check()
    stamps = np.concatenate(loop.parts, axis=1) - began_ns
    return Operations(stamps[0], stamps[1], taken_ns)


class _Loop:
    """So many operations under way: when one ends, another begins in its place.

    Args:
        ring: for as many operations; taken over.
        file: stays open.

    Attributes:
        parts: i64[2, n], starts and ends, of each compiled call.
    """

    def __init__(
        self, ring: Ring, file: OpenFile, size_bytes: int, load: Load, rng: np.random.Generator
    ) -> None:
        self.parts: list[I64] = []
        self._ring = ring
        self._file = file
        self._memory = aligned_rows(load.depth, load.io_bytes)
        self._memory[:] = np.frombuffer(rng.bytes(load.io_bytes), np.uint8)
        self._offsets = rng.integers(0, size_bytes // load.io_bytes, _OFFSETS) * load.io_bytes
        self._writes = rng.random(_OFFSETS) < load.write_share
        self._places = np.zeros((2, load.depth), np.int64)
        self._state = np.zeros(_STATE_WORDS, np.int64)
        self._clock = np.zeros(2, np.int64)

    def work(self, until_ns: int) -> None:
        """Operate until then; but once in each place, unless ``until_ns`` is 0."""
        ring = self._ring
        while True:
            stamps = np.empty((2, _OPERATIONS_PER_CALL), np.int64)
            count = _drive(
                *(ring.words, ring.sqes, ring.cqes),
                self._file.fd,
                self._memory.ctypes.data,
                self._memory.shape[1],
                self._offsets,
                self._writes,
                *(self._places, self._state),
                until_ns,
                self._clock,
                self._clock.ctypes.data,
                stamps,
            )
            if count < 0:
                _lost.append(self._memory)
                self._state[_UNDER_WAY] = 0
                raise DeviceError(f"{self._file.path}: io_uring failed: {os.strerror(-count)}")
            self.parts.append(stamps[:, :count])
            if not self._state[_UNDER_WAY]:
                return

    def close(self) -> None:
        """Wait for what is under way, and give the ring back."""
        try:
            if self._state[_UNDER_WAY]:
                self.work(until_ns=0)
        finally:
            self._ring.close()

    def check(self) -> None:
        """Raise DeviceError if an operation failed."""
        if self._state[_FAILED]:
            result = int(self._state[_RESULT])
            reason = os.strerror(-result) if result < 0 else "it has become shorter"
            raise DeviceError(f"{self._file.path}: I/O failed: {reason}; choose another path")


@jit
def _drive(
    ring: I64,
    sqes: I64,
    cqes: I64,
    fd: int,
    address: int,
    io_bytes: int,
    offsets: I64,
    writes: NDArray[np.bool_],
    places: I64,
    state: I64,
    until_ns: int,
    clock: I64,
    clock_address: int,
    stamps: I64,
) -> int:
    """Operate until then, or until nothing is under way, or for ``_CALL_NS``.

    ``ring``, ``sqes`` and ``cqes`` are those of a :class:`kvtier.io.ring.Ring`. ``offsets``,
    i64[n], and ``writes``, bool[n], are those of the operations in turn. ``places``, i64[2, depth],
    has the number of the operation in each place, and when it began; ``state`` is
    i64[_STATE_WORDS], and ``clock`` i64[2] at ``clock_address``. ``stamps``, i64[2, m], takes
    starts and ends; m is more than there are places.

    Returns:
        How many operations ended; or ``-errno``, if the kernel cannot be entered.
    """
    depth = places.shape[1]
    clock_gettime(np.int32(_CLOCK), clock_address)
    now_ns = clock[0] * NS_PER_S + clock[1]
    end_ns = now_ns + _CALL_NS
    if state[_BEGUN] == 0 and until_ns > 0:
        for place in range(depth):
            places[0, place], places[1, place] = state[_BEGUN], now_ns
            state[_BEGUN] += 1
            _push(ring, sqes, fd, address, io_bytes, offsets, writes, places, place)
        state[_UNDER_WAY] = depth
    count = 0
    while state[_UNDER_WAY] > 0 and now_ns < end_ns and count + depth <= stamps.shape[1]:
        fresh = (load_acquire(ring[SQ_TAIL]) - load_acquire(ring[SQ_HEAD])) & _U32
        if syscall(SYS_ENTER, ring[FD], fresh, 1, _GETEVENTS, 0, 0) < 0:
            error = int(errno_location()[0])
            if error not in (_EINTR, _EAGAIN, _EBUSY):
                return -error
        clock_gettime(np.int32(_CLOCK), clock_address)
        now_ns = clock[0] * NS_PER_S + clock[1]
        head = load_acquire(ring[CQ_HEAD])
        tail = load_acquire(ring[CQ_TAIL])
        while head != tail:
            place = cqes[head & ring[CQ_MASK], 0]
            moved = cqes[head & ring[CQ_MASK], 1] & _U32
            head = (head + 1) & _U32
            if moved > _U32 >> 1:
                moved -= _U32 + 1
            if moved in (-_EINTR, -_EAGAIN):
                _push(ring, sqes, fd, address, io_bytes, offsets, writes, places, place)
                continue
            if moved != io_bytes:
                state[_FAILED], state[_RESULT] = 1, moved
            stamps[0, count], stamps[1, count] = places[1, place], now_ns
            count += 1
            if now_ns < until_ns and not state[_FAILED]:
                places[0, place], places[1, place] = state[_BEGUN], now_ns
                state[_BEGUN] += 1
                _push(ring, sqes, fd, address, io_bytes, offsets, writes, places, place)
                # At once: the device would have less to do until all are told of. What the kernel
                # does not take now, it is given again above.
                syscall(SYS_ENTER, ring[FD], 1, 0, 0, 0, 0)
            else:
                state[_UNDER_WAY] -= 1
        store_release(ring[CQ_HEAD], head)
    return count


@jit
def _push(
    ring: I64,
    sqes: I64,
    fd: int,
    address: int,
    io_bytes: int,
    offsets: I64,
    writes: NDArray[np.bool_],
    places: I64,
    place: int,
) -> None:
    """Put the operation of a place into the ring (``struct io_uring_sqe``); there is room."""
    at = places[0, place] % offsets.size
    operation = _OP_WRITE if writes[at] else _OP_READ
    tail = load_acquire(ring[SQ_TAIL])
    entry = tail & ring[SQ_MASK]
    sqes[entry, 0] = fd << 32 | operation
    sqes[entry, 1] = offsets[at]
    sqes[entry, 2] = address + place * io_bytes
    sqes[entry, 3] = io_bytes
    sqes[entry, 4] = place
    sqes[entry, 5] = 0
    sqes[entry, 6] = 0
    sqes[entry, 7] = 0
    store_release(ring[SQ_TAIL], (tail + 1) & _U32)
