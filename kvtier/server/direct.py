"""Reads answered straight out of the memory of a backend: only the kernel copies the pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np

from kvtier.backend import Backend, ExtentBatch, ResidentBackend, empty_status
from kvtier.extents import find
from kvtier.io.libc import writev
from kvtier.jit import jit
from kvtier.pages import I64, U8, U32, U64
from kvtier.rows import memcpy
from kvtier.server.counting import ServerCounters
from kvtier.server.limits import ServerLimits
from kvtier.server.tenants import TenantView
from kvtier.wire.codec import encode
from kvtier.wire.messages import ReadReply

Locate: TypeAlias = Callable[[Sequence[bytes]], U64]
"""As :meth:`kvtier.backend.ResidentBackend.locate`."""

_PIECES_MAX: Final = 1024
"""``IOV_MAX`` of Linux."""

_TURN_BYTES: Final = 4 << 20
"""Sent in one turn of the event loop; then the other connections have theirs."""


def locate_of(backend: Backend) -> Locate | None:
    """What says where the objects of ``backend`` lie; None where only its ``read`` may be asked."""
    if isinstance(backend, TenantView):
        inner = locate_of(backend.inner)
        return None if inner is None else lambda keys: inner(backend.own(keys))
    # What overrides it, as a store that fails on purpose may, does something else.
    if isinstance(backend, ResidentBackend) and type(backend).read is ResidentBackend.read:
        return backend.locate
    return None


class DirectReads:
    """Answers reads of one connection, each whole and at once.

    Args:
        fd: the connection's socket, which does not block.
        locate: says where the objects lie.
        backend: the store, for what it takes.
        page_bytes: its page size.
        limits: bounds of a request.
        counters: where bytes sent are counted.
    """

    def __init__(
        self,
        fd: int,
        locate: Locate,
        backend: Backend,
        page_bytes: int,
        limits: ServerLimits,
        counters: ServerCounters,
    ) -> None:
        can = backend.capability
        self._fd = fd
        self._locate = locate
        self._page_bytes = page_bytes
        self._extent_pages_max = can.extent_pages_max
        self._items_max = min(_PIECES_MAX - 1, limits.batch_items_max, can.batch_extents_max)
        self._counters = counters
        self._all_ok = empty_status(self._items_max)
        self._left_bytes = _TURN_BYTES

    def begin_turn(self) -> None:
        """The event loop has come round to this connection again."""
        self._left_bytes = _TURN_BYTES

    def answer(self, number: int, batch: ExtentBatch, payload_bytes: int) -> U8 | None:
        """Send the frame that answers a read, if all that it asks for is here.

        Args:
            number: of the request.
            batch: its extents, out of its frame; nothing else may wait to be sent.
            payload_bytes: bytes of their pages, at most those of a frame.

        Returns:
            The end of the frame that the kernel had no room for, most often nothing. None where
            nothing was sent: then the answer is not so simple, or not now, and is to be made in
            the ordinary way.
        """
        if not 0 < len(batch) <= self._items_max or len(batch.keys) > self._items_max:
            return None
        if payload_bytes > self._left_bytes:
            return None
        try:
            places = self._locate(batch.keys)
        except Exception:  # the ordinary way meets it again, and deals with it
            return None
        pieces = np.empty((len(batch) + 1, 2), np.int64)
        head = encode(ReadReply(self._all_ok[: len(batch)]), number, payload_bytes)
        sent = _send(
            self._fd,
            np.frombuffer(head, np.uint8),
            places,
            batch.versions,
            batch.key_index,
            batch.first_page,
            batch.page_count,
            self._page_bytes,
            self._extent_pages_max,
            pieces,
        )
        if sent <= 0:
            return None
        self._left_bytes -= payload_bytes
        self._counters.sent_bytes += sent
        rest = np.empty(len(head) + payload_bytes - sent, np.uint8)
        if len(rest):
            _copy_rest(pieces, sent, rest)
        return rest


@jit
def _send(
    fd: int,
    head: U8,
    places: U64,
    versions: U64,
    key_index: U32,
    first_page: U32,
    page_count: U32,
    page_bytes: int,
    extent_pages_max: int,
    pieces: I64,
) -> int:
    """Write ``head`` and the pages of extents to a socket.

    Args:
        fd: the socket.
        head: u8[any].
        places: u64[k, 3], version, pages and address of each object; no pages where there is none.
        versions: u64[k], the version wanted of each.
        key_index: u32[n], the key of each extent.
        first_page: u32[n].
        page_count: u32[n].
        page_bytes: bytes of a page.
        extent_pages_max: most pages of an extent.
        pieces: i64[n + 1, 2], is written: address and bytes of what is sent, in order.

    Returns:
        Bytes that the kernel took; 0 where not all is there, or an extent has no possible size;
        -1 where the kernel took nothing.
    """
    used, end = np.int64(0), np.int64(0)
    pieces[0, 0], pieces[0, 1] = head.ctypes.data, len(head)
    for at in range(len(page_count)):
        count = np.int64(page_count[at])
        start = np.int64(
            find(places, versions, key_index[at], first_page[at], page_count[at], page_bytes)
        )
        if start == 0 or not 0 < count <= extent_pages_max:
            return 0
        if start != end:
            used += 1
            pieces[used, 0], pieces[used, 1] = start, 0
        pieces[used, 1] += count * page_bytes
        end = start + count * page_bytes
    return int(writev(np.int32(fd), pieces.ctypes.data, np.int32(used + 1)))


@jit
def _copy_rest(pieces: I64, sent: int, rest: U8) -> None:
    """Copy to ``rest`` what follows the first ``sent`` bytes of ``pieces``."""
    at, done = 0, 0
    while done < len(rest):
        start, size = pieces[at, 0] + sent, pieces[at, 1] - sent
        if size > 0:
            memcpy(np.uint64(rest.ctypes.data + done), np.uint64(start), np.uint64(size))
            done += size
        sent = max(0, -size)
        at += 1


def compile_all() -> None:
    """Compile what answers reads, so that none waits for it; kept on disk."""
    head, pieces = np.frombuffer(b"-", np.uint8), np.zeros((2, 2), np.int64)
    places, versions, column = (
        np.zeros((1, 3), np.uint64),
        np.zeros(1, np.uint64),
        np.zeros(1, np.uint32),
    )
    _send(-1, head, places, versions, column, column, column, 1, 1, pieces)
    _copy_rest(pieces, 0, np.empty(0, np.uint8))
