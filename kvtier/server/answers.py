"""What a server answers: requests in, frames out, and no socket in sight."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from itertools import count
from typing import Final, TypeAlias

import numpy as np

from kvtier.backend import Backend, ObjectBatch, PutResult, check_extents
from kvtier.errors import BackendError, LimitError, ProtocolError
from kvtier.pages import U8, PageStatus
from kvtier.server.limits import ServerLimits
from kvtier.server.recycling import Recycler
from kvtier.server.uploads import Uploads
from kvtier.wire.codec import encode
from kvtier.wire.frames import HEADER_BYTES
from kvtier.wire.messages import (
    Abandon,
    AbandonReply,
    Delete,
    DeleteReply,
    Keys,
    KeysReply,
    Message,
    Put,
    PutPart,
    PutReply,
    Read,
    ReadReply,
    Stat,
    StatReply,
)

Buffers: TypeAlias = Sequence[bytes | memoryview]
"""A reply, to be written in this order; nothing else holds or reuses its memory."""

_KEYS_PER_REPLY: Final = 1024


def reply_bytes(message: Message, page_bytes: int) -> int:
    """Payload bytes that the reply to ``message`` may have."""
    if isinstance(message, Read):
        return message.batch.pages * page_bytes
    return 0


class Answers:
    """Answers the requests of one connection out of a backend.

    Args:
        backend: the store.
        page_bytes: its page size.
        object_pages_max: most pages of an object, as announced.
        uploads: takes the objects that come in parts; closed with this.
        limits: bounds of a reply, and of the listings open at once.
        memory: what replies are made in.
    """

    def __init__(
        self,
        backend: Backend,
        page_bytes: int,
        object_pages_max: int,
        uploads: Uploads,
        limits: ServerLimits,
        memory: Recycler,
    ) -> None:
        self._memory = memory
        self._backend = backend
        self._page_bytes = page_bytes
        self._object_pages_max = object_pages_max
        self._uploads = uploads
        self._limits = limits
        self._payload_bytes_max = limits.frame.payload_bytes_max
        self._listings_max = limits.listings_max
        self._listings: dict[int, AsyncIterator[bytes]] = {}  # those that nobody is reading now
        self._cursors = count(1)

    async def answer(self, number: int, message: Message, payload: U8 | None) -> Buffers:
        """The frames that answer request ``number``.

        Raises:
            ProtocolError: such a message is no request, or its payload does not fit to it.
            KvtierError: the request failed as a whole.
        """
        if isinstance(message, Read):
            return await self._read(number, message)
        return [encode(await self._reply_to(message, payload), number)]

    async def close(self) -> None:
        """End the uploads and listings that are still open."""
        await self._uploads.close()
        while self._listings:
            await _end(self._listings.popitem()[1])

    async def _reply_to(self, message: Message, payload: U8 | None) -> Message:
        match message:
            case Put():
                return PutReply(await self._put(message, payload))
            case PutPart():
                return await self._uploads.take(message, payload)
            case Abandon(upload):
                await self._uploads.abandon(upload)
                return AbandonReply()
            case Stat(keys):
                self._limits.check_items(keys)
                return StatReply(await self._backend.stat(keys))
            case Delete(keys):
                self._check_writable()
                self._limits.check_items(keys)
                return DeleteReply(await self._backend.delete(keys))
            case Keys(cursor):
                return await self._next_keys(cursor)
            case _:
                raise ProtocolError(f"a {type(message).__name__} is no request")

    async def _read(self, number: int, message: Read) -> Buffers:
        """Read into the memory that is sent: room for the head, then the pages."""
        batch = message.batch
        self._limits.check_items(batch.keys)
        self._limits.check_items(batch)
        payload_bytes = reply_bytes(message, self._page_bytes)
        if payload_bytes > self._payload_bytes_max:
            raise LimitError(
                f"a read of {payload_bytes} bytes: {self._payload_bytes_max} are possible at once"
            )
        head_bytes = HEADER_BYTES + 8 + len(batch)
        reply = self._memory.take(head_bytes + payload_bytes, aligned_from=head_bytes)
        pages = reply[head_bytes:].reshape(-1, self._page_bytes)
        check_extents(batch, pages, self._page_bytes, self._backend.capability)
        status = await self._backend.read(batch, pages)
        if np.count_nonzero(status):
            # What a failed extent left in its rows is not for the client's eyes.
            wanted = np.repeat(status == PageStatus.OK, batch.page_count)
            some = pages[wanted].reshape(-1)
            return [encode(ReadReply(status), number, some.nbytes), some.data]
        head = encode(ReadReply(status), number, payload_bytes)
        whole = reply.data
        whole[:head_bytes] = head
        return [whole]

    async def _put(self, message: Put, payload: U8 | None) -> PutResult:
        self._check_writable()
        self._limits.check_items(message.keys)
        pages = int(message.page_counts.sum(dtype=np.int64))
        have_bytes = 0 if payload is None else payload.nbytes
        if have_bytes != pages * self._page_bytes:
            raise ProtocolError(
                f"a PUT of {pages} pages has a payload of {have_bytes} bytes: "
                f"the pages have {self._page_bytes}"
            )
        if pages and int(message.page_counts.max()) > self._object_pages_max:
            raise LimitError(
                f"an object of {int(message.page_counts.max())} pages: "
                f"{self._object_pages_max} are possible"
            )
        whole = np.empty(0, np.uint8) if payload is None else payload
        batch = ObjectBatch(message.keys, message.page_counts, whole.reshape(-1, self._page_bytes))
        return await self._backend.put(batch)

    async def _next_keys(self, cursor: int) -> KeysReply:
        """Go on with a listing; it is nobody else's while it is read, and ends on any error."""
        if not self._backend.capability.listable:
            raise BackendError("the store behind the server cannot list its keys")
        if cursor == 0:
            cursor, listing = next(self._cursors), self._backend.keys()
        elif cursor in self._listings:
            listing = self._listings.pop(cursor)
        else:
            raise BackendError("the listing has ended, or too many were begun: begin it again")
        keys = []
        async for key in listing:
            keys.append(key)
            if len(keys) == _KEYS_PER_REPLY:
                await self._keep(cursor, listing)
                return KeysReply(cursor, tuple(keys))
        return KeysReply(0, tuple(keys))

    async def _keep(self, cursor: int, listing: AsyncIterator[bytes]) -> None:
        if len(self._listings) >= self._listings_max:
            await _end(self._listings.pop(next(iter(self._listings))))
        self._listings[cursor] = listing

    def _check_writable(self) -> None:
        if not self._backend.capability.writable:
            raise BackendError("the store behind the server is read-only")


async def _end(listing: AsyncIterator[bytes]) -> None:
    if isinstance(listing, AsyncGenerator):
        await listing.aclose()
