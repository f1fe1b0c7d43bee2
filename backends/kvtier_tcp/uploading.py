"""Sends an object that is larger than a frame, part by part."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

import numpy as np

from kvtier.backend import PutResult
from kvtier.pages import U8, PageStatus
from kvtier.wire.messages import Abandon, PutPart, PutPartReply
from kvtier_tcp.connection import Connection

_WINDOW: Final = 2
"""Parts without an answer: one is written to the server's disk while another travels."""

_PUBLISH_BYTES_PER_S: Final = 32 << 20
"""Slowest store to wait for: with the last part the server copies the whole object into it."""


async def upload(
    connection: Connection, key: bytes, pages: U8, part_pages: int, timeout_s: float
) -> PutResult:
    """Put one object. Whatever ends this early, the server forgets what it has of it.

    Args:
        connection: takes one upload at a time; others wait here.
        key: of the object.
        pages: u8[n, page_bytes]; may be a mapped file, of which little is in memory at once.
        part_pages: pages of a part.
        timeout_s: how long the answer to a part may take. The last one has more time, for it
            comes when the whole object is in the store.

    Raises:
        BackendError: the server failed, did not answer in time, or is gone.
        LimitError: the server refused the object, or one more upload.
    """
    async with connection.uploading:
        number = next(connection.upload_numbers)
        asked: deque[asyncio.Task[PutPartReply]] = deque()
        reply: PutPartReply | None = None
        try:
            reply = await _send_parts(connection, number, key, pages, part_pages, timeout_s, asked)
        finally:
            for task in asked:
                task.cancel()  # none of them sends anything from here on
            if reply is None or reply.status != PageStatus.OK:
                connection.tell(Abandon(number))
            await asyncio.gather(*asked, return_exceptions=True)
    status = np.array([reply.status], np.uint8)
    return PutResult(status, np.array([reply.version], np.uint64))


async def _send_parts(
    connection: Connection,
    number: int,
    key: bytes,
    pages: U8,
    part_pages: int,
    timeout_s: float,
    asked: deque[asyncio.Task[PutPartReply]],
) -> PutPartReply:
    """The answer to the last part, or the first that is not OK; ``asked`` has the others."""
    patience_s = timeout_s
    for first in range(0, len(pages), part_pages):
        # In a thread: the pages may have to come from a disk.
        payload = await asyncio.to_thread(pages[first : first + part_pages].tobytes)
        if first + part_pages >= len(pages):
            patience_s += pages.nbytes / _PUBLISH_BYTES_PER_S
        part = PutPart(number, key, len(pages), first)
        asking = connection.ask(part, PutPartReply, patience_s, payload=payload)
        asked.append(asyncio.create_task(asking))
        # The first part is where an upload is refused: nothing follows it unanswered.
        while len(asked) >= (_WINDOW if first else 1):
            reply = await _oldest(asked)
            if reply.status != PageStatus.OK:
                return reply
    while asked:
        reply = await _oldest(asked)
        if reply.status != PageStatus.OK:
            break
    return reply


async def _oldest(asked: deque[asyncio.Task[PutPartReply]]) -> PutPartReply:
    reply = await asked[0]
    asked.popleft()
    return reply
