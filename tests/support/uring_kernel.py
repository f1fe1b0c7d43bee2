"""The kernel's side of an io_uring, in plain Python: in any order, in pieces, and badly."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import select
import sys
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np

from kvtier import jit
from kvtier.io import libc, ring_turn
from kvtier.io.ring import (
    CQ_HEAD,
    CQ_MASK,
    CQ_TAIL,
    EVENT_FD,
    FD,
    SQ_FLAGS,
    SQ_HEAD,
    SQ_MASK,
    SQ_TAIL,
    Ring,
)
from kvtier.pages import U8

_TASKRUN = 1 << 2
_WRITES = (5, 23)
_BLOCK_BYTES = 512
_U32 = (1 << 32) - 1

libc_read = ctypes.CDLL(None).read
libc_read.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class PlayedRing(Ring):
    """A ring with this module behind it.

    Args:
        entries: of the submission queue, a power of two.
        disk: u8[any], what is read and written.
        bad_pages: of 4 KiB, on which operations fail with EIO.
        full_from: writes at this offset and beyond fail with ENOSPC.
        rng: for the order, the pieces and the interruptions.
        start: value of the queues' positions, which wrap at 2**32.
    """

    fixed_file = False
    foreign = False  # type: ignore[assignment]

    def __init__(
        self,
        entries: int,
        disk: U8,
        bad_pages: set[int],
        full_from: int,
        rng: np.random.Generator,
        start: int,
    ) -> None:
        self.disk, self.bad_pages, self.full_from, self.rng = disk, bad_pages, full_from, rng
        self.fd = 1 << 20  # no descriptor: whoever asks the real kernel gets EBADF
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.sqes = np.zeros((entries, 8), np.int64)
        self.cqes = np.zeros((2 * entries, 2), np.int64)
        self.shared = np.zeros(5, np.uint32)  # heads and tails of both queues, and the flags
        self.shared[:4] = start
        sq_head, sq_tail, cq_head, cq_tail, flags = self.shared.ctypes.data + 4 * np.arange(5)
        self.words = np.zeros(9, np.int64)
        self.words[[FD, EVENT_FD]] = self.fd, self.event_fd
        self.words[[SQ_HEAD, SQ_TAIL, SQ_MASK, SQ_FLAGS]] = sq_head, sq_tail, entries - 1, flags
        self.words[[CQ_HEAD, CQ_TAIL, CQ_MASK]] = cq_head, cq_tail, 2 * entries - 1
        self.taken: list[list[int]] = []
        self.ready: list[tuple[int, int]] = []
        self.errno = 0
        self.most_under_way = 0

    def register_file(self, fd: int) -> None:
        """This one is found by number."""

    def register_buffer(self, memory: U8) -> bool:
        return False

    def close(self) -> None:
        os.close(self.event_fd)
        self.fd = -1

    def readable(self) -> bool:
        return bool(select.select([self.event_fd], [], [], 0)[0])

    def read_event(self, fd: int, address: int, count: int) -> int:
        """read(2) of the eventfd; operations may end just before."""
        self.work()
        return int(libc_read(fd, address, count))

    def enter(self, _number: int, fd: int, fresh: int, least: int, *_: int) -> int:
        """io_uring_enter(2): it may take fewer than it is given, or none."""
        assert fd == self.fd
        if self.rng.random() < 0.2:
            self.errno = int(self.rng.choice([errno.EINTR, errno.EAGAIN, errno.EBUSY]))
            return -1
        taken = int(self.rng.integers(0, fresh + 1))
        for _ in range(taken):
            entry = self.sqes[int(self.shared[0]) & (len(self.sqes) - 1)]
            self.taken.append([int(word) for word in entry])
            self.shared[0] = (int(self.shared[0]) + 1) & _U32
        self.most_under_way = max(self.most_under_way, len(self.taken) + len(self.ready))
        self.work()
        while self.taken and len(self.ready) < least:
            self.work()
        for name, result in self.ready:
            at = int(self.shared[3]) & (len(self.cqes) - 1)
            assert (int(self.shared[3]) - int(self.shared[2])) & _U32 < len(self.cqes)
            self.cqes[at] = name, result & _U32
            self.shared[3] = (int(self.shared[3]) + 1) & _U32
            os.eventfd_write(self.event_fd, 1)
        self.ready.clear()
        self.shared[4] = 0
        return taken

    def work(self) -> None:
        """End some of the operations; the eventfd tells that there is something to fetch."""
        share = self.rng.random()
        ended = [entry for entry in self.taken if self.rng.random() < share]
        self.taken = [entry for entry in self.taken if entry not in ended]
        for entry in self.rng.permutation(np.array(ended, np.int64).reshape(-1, 8)).tolist():
            self.ready.append((entry[4], self._move(entry)))
        if ended:
            self.shared[4] = _TASKRUN
            os.eventfd_write(self.event_fd, 1)

    def _move(self, entry: list[int]) -> int:
        command, offset, address, length = entry[:4]
        assert command >> 32 == 3
        writing = command & 255 in _WRITES
        if self.rng.random() < 0.2:
            return -int(self.rng.choice([errno.EINTR, errno.EAGAIN]))
        if writing and offset >= self.full_from:
            return -errno.ENOSPC
        if offset // 4096 in self.bad_pages:
            return -errno.EIO
        length = min(length, len(self.disk) - offset, 4096 - offset % 4096)
        if length <= 0:
            return 0
        if self.rng.random() < 0.5 and length > _BLOCK_BYTES:
            length = int(self.rng.integers(1, length // _BLOCK_BYTES)) * _BLOCK_BYTES
        place = self.disk.ctypes.data + offset
        ctypes.memmove(*((place, address) if writing else (address, place)), length)
        return length


def played_turn(ring: PlayedRing) -> Any:
    """``kvtier.io.ring_turn.turn`` as plain Python, with ``ring`` as its kernel."""
    with patch.object(jit, "JIT_DISABLED", True):
        plain = _copy(libc)
        with patch.dict(sys.modules, {libc.__name__: plain}):
            module = _copy(ring_turn)
    module.syscall = ring.enter  # type: ignore[attr-defined]
    module.read = ring.read_event  # type: ignore[attr-defined]
    module.errno_location = lambda: (ring.errno,)  # type: ignore[attr-defined]
    return module.turn


def _copy(module: ModuleType) -> ModuleType:
    """A module loaded once more, beside itself."""
    assert module.__file__ is not None
    spec = importlib.util.spec_from_file_location(f"played_{module.__name__}", module.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy
