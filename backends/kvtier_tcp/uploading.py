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
        is_over = False
        try:
            for first in range(0, len(pages), part_pages):
                # In a thread: the pages may have to come from a disk.
                payload = await asyncio.to_thread(pages[first : first + part_pages].tobytes)
                is_last = first + part_pages >= len(pages)
                patience_s = timeout_s + is_last * pages.nbytes / _PUBLISH_BYTES_PER_S
                part = PutPart(number, key, len(pages), first)
                asked.append(
                    asyncio.create_task(
                        connection.ask(part, PutPartReply, patience_s, payload=payload)
                    )
                )
                # The first part is where an upload is refused: nothing follows it unanswered.
                window = 0 if is_last or first == 0 else _WINDOW - 1
                while len(asked) > window:
                    reply = await asked[0]
                    asked.popleft()
                    if reply.status != PageStatus.OK:
                        return _result(reply)
            is_over = True
            return _result(reply)
        finally:
            for task in asked:
                task.cancel()  # none of them sends anything from here on
            if not is_over:
                connection.tell(Abandon(number))
            if asked:
                await asyncio.wait(asked)


def _result(reply: PutPartReply) -> PutResult:
    status = np.array([reply.status], np.uint8)
    return PutResult(status, np.array([reply.version], np.uint64))
