"""One io_uring: asked of the kernel, mapped into arrays, and given back.

Names, numbers and layouts are the kernel's: ``linux/io_uring.h``, io_uring_setup(2),
io_uring_register(2). What is submitted and reaped is the matter of :mod:`kvtier.io.ring_turn`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import sys
import threading
from pathlib import Path
from typing import Final

import numpy as np

from kvtier.environment import read_text
from kvtier.pages import U8

# System calls since Linux 5.1 have the same number on every architecture.
_SYS_SETUP: Final = 425
SYS_ENTER: Final = 426
_SYS_REGISTER: Final = 427

_SETUP_SUBMIT_ALL: Final = 1 << 7
_SETUP_COOP_TASKRUN: Final = 1 << 8
_SETUP_TASKRUN_FLAG: Final = 1 << 9
_SETUP_SINGLE_ISSUER: Final = 1 << 12
_SETUP_DEFER_TASKRUN: Final = 1 << 13

SETUPS: Final = (
    _SETUP_SUBMIT_ALL | _SETUP_TASKRUN_FLAG | _SETUP_SINGLE_ISSUER | _SETUP_DEFER_TASKRUN,
    _SETUP_SUBMIT_ALL | _SETUP_TASKRUN_FLAG | _SETUP_COOP_TASKRUN,
    0,
)
"""Flags to ask for, the best first: they need Linux 6.1, 5.19 and 5.1. With the first, completions
are worked off only when this thread asks, many at once, and never interrupt it."""

_FEATURES: Final = 1 << 0 | 1 << 1 | 1 << 5
"""One mapping, no lost completions, and the newest, FAST_POLL (Linux 5.7), for all that came before
it: plain reads and writes are of 5.6."""

_REGISTER_BUFFERS: Final = 0
_UNREGISTER_BUFFERS: Final = 1
_REGISTER_FILES: Final = 2
_UNREGISTER_FILES: Final = 3
_REGISTER_EVENTFD: Final = 4

_OFFSET_RING: Final = 0
_OFFSET_ENTRIES: Final = 0x1000_0000
_SQE_BYTES: Final = 64
_CQE_BYTES: Final = 16

BUFFER_BYTES_MAX: Final = 1 << 30
"""The most bytes that the kernel takes as one registered buffer."""

# Columns of ``Ring.words``: a descriptor, a number, or the address of a u32 that the kernel shares.
FD: Final = 0
SQ_HEAD: Final = 1
SQ_TAIL: Final = 2
SQ_MASK: Final = 3
SQ_FLAGS: Final = 4
CQ_HEAD: Final = 5
CQ_TAIL: Final = 6
CQ_MASK: Final = 7
EVENT_FD: Final = 8

_DISABLED: Final = Path("/proc/sys/kernel/io_uring_disabled")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Ring:
    """An io_uring with an eventfd that tells of completions. Used by the thread that made it.

    Args:
        depth: operations under way at once, at most.
        setups: flags to try, one after the other.

    Attributes:
        words: i64[9], where everything is, by the columns above.
        sqes: i64[entries, 8], what is asked for.
        cqes: i64[entries, 2], what became of it.
        event_fd: readable when operations have ended.
        fixed_file: the file was registered; it is then number 0.

    Raises:
        OSError: the kernel gives none (ENOSYS, EPERM, EMFILE, ENOMEM), or an old one.
    """

    def __init__(self, depth: int, setups: tuple[int, ...] = SETUPS) -> None:
        self.fixed_file = False
        self.event_fd = -1
        self._thread = threading.get_native_id()
        self.fd, self._parameters = _set_up(depth, setups)
        try:
            if self._parameters[5] & _FEATURES != _FEATURES:
                raise OSError(errno.ENOSYS, "the kernel's io_uring is older than Linux 5.7")
            self._map()
            self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.words[EVENT_FD] = self.event_fd
            self._register(_REGISTER_EVENTFD, np.array([self.event_fd], np.int32), 1)
            _system_call(SYS_ENTER, self.fd, 0, 0, 0, 0, 0)  # a filter may allow only the rest
        except OSError:
            self.close()
            raise

    @property
    def foreign(self) -> bool:
        """Another thread, or the process that this one was forked from, made it."""
        return self._thread != threading.get_native_id()  # of no other thread in the system

    def register_file(self, fd: int) -> None:
        """Have the kernel keep hold of the file, if it can, so that no operation looks it up."""
        with contextlib.suppress(OSError):
            self._register(_REGISTER_FILES, np.array([fd], np.int32), 1)
            self.fixed_file = True

    def register_buffer(self, memory: U8) -> bool:
        """Pin memory, so that no operation has to; whether the kernel could.

        It counts as locked memory (RLIMIT_MEMLOCK, ``ulimit -l``). The caller keeps it alive.
        """
        if not 0 < memory.nbytes <= BUFFER_BYTES_MAX:
            return False
        try:
            vector = np.array([memory.ctypes.data, memory.nbytes], np.uint64)
            self._register(_REGISTER_BUFFERS, vector, 1)
        except OSError:
            return False
        return True

    def unregister_buffer(self) -> None:
        """Undo :meth:`register_buffer`; nothing may be under way."""
        self._register(_UNREGISTER_BUFFERS, None, 0)

    def close(self) -> None:
        """Give the ring back; nothing may be under way."""
        if self.fixed_file and not self.foreign:
            # Else the file lives on, with its lock, until the kernel gets round to the ring.
            with contextlib.suppress(OSError):
                self._register(_UNREGISTER_FILES, None, 0)
        for fd in (self.fd, self.event_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.event_fd = -1
        # The mappings go with the last array over them.
        self.words = np.zeros(0, np.int64)
        self.sqes = self.cqes = np.zeros((0, 0), np.int64)

    def _map(self) -> None:
        """Map both queues and look up where their parts are (``struct io_uring_params``)."""
        parameters = [int(word) for word in self._parameters]
        sq_entries, cq_entries = parameters[0], parameters[1]
        sq_head, sq_tail, sq_mask, _, sq_flags, _, sq_array = parameters[10:17]
        cq_head, cq_tail, cq_mask, _, _, cqes = parameters[20:26]
        size = max(sq_array + 4 * sq_entries, cqes + _CQE_BYTES * cq_entries)
        ring = np.frombuffer(mmap.mmap(self.fd, size, offset=_OFFSET_RING), np.uint8)
        entries = mmap.mmap(self.fd, _SQE_BYTES * sq_entries, offset=_OFFSET_ENTRIES)
        self.sqes = np.frombuffer(entries, np.int64).reshape(sq_entries, -1)
        completions = ring[cqes : cqes + _CQE_BYTES * cq_entries]
        self.cqes = completions.view(np.int64).reshape(cq_entries, -1)
        # Entry i of the queue is always entry i of the array behind it.
        ring[sq_array : sq_array + 4 * sq_entries].view(np.uint32)[:] = np.arange(sq_entries)
        base = ring.ctypes.data
        sq_mask, cq_mask = (int(ring[at : at + 4].view(np.uint32)[0]) for at in (sq_mask, cq_mask))
        queues = (base + sq_head, base + sq_tail, sq_mask, base + sq_flags)
        self.words = np.array(
            (self.fd, *queues, base + cq_head, base + cq_tail, cq_mask, self.event_fd), np.int64
        )

    def _register(self, what: int, argument: np.ndarray | None, count: int) -> None:
        address = 0 if argument is None else argument.ctypes.data
        _system_call(_SYS_REGISTER, self.fd, what, address, count)


def explain(error: OSError) -> str:
    """What ``Ring`` raised, and what forbids it where the system says so."""
    what = error.strerror or str(error)
    setting = read_text(_DISABLED).strip()
    if error.errno == errno.EPERM and setting in ("1", "2"):
        return f"{what} (kernel.io_uring_disabled = {setting})"
    return what


def _set_up(depth: int, setups: tuple[int, ...]) -> tuple[int, np.ndarray]:
    """A ring's descriptor and its ``struct io_uring_params``, u32[30]."""
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "only Linux has io_uring")
    for flags in setups:
        parameters = np.zeros(30, np.uint32)
        parameters[2] = flags
        try:
            fd = _system_call(_SYS_SETUP, depth, parameters.ctypes.data)
        except OSError as error:
            if error.errno != errno.EINVAL or flags == setups[-1]:
                raise
        else:
            return fd, parameters
    raise ValueError("no setup was given")


def _system_call(number: int, *arguments: int) -> int:
    answer = _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(answer)
