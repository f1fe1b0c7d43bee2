"""Publishing objects: small ones in one transaction, large ones as a draft that is renamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from kvtier.backend import ObjectBatch, PutResult, empty_status
from kvtier.errors import BackendError
from kvtier.pages import U8, PageStatus
from kvtier_redis.commands import Reply, Request, error_in, pack, pack_with, transaction
from kvtier_redis.layout import HEADER_FIELD, Layout, new_version, pack_pages
from kvtier_redis.servers import Servers

_PART_BYTES: Final = 4 << 20
"""Pages of one command; a larger object goes in parts."""

_WINDOW_BYTES: Final = 8 << 20
"""Pages of small objects that are sent at once."""

_DRAFT_MS: Final = b"%d" % (600 * 1000)
"""A draft whose writer fell silent is removed by the server after so long."""


class Publisher:
    """Publishes objects through ``servers``."""

    def __init__(self, servers: Servers, layout: Layout) -> None:
        self._servers = servers
        self._layout = layout
        self._part_pages = max(1, _PART_BYTES // layout.page_bytes)

    async def put(self, batch: ObjectBatch) -> PutResult:
        """See :meth:`kvtier.backend.Backend.put`."""
        result = PutResult(empty_status(len(batch)), np.zeros(len(batch), np.uint64))
        rows = [0, *np.cumsum(batch.page_counts, dtype=np.int64).tolist()]
        failure: BackendError | None = None
        for window in self._windows(batch.page_counts.tolist()):
            pages = [batch.payload[rows[item] : rows[item + 1]] for item in window]
            names = [self._layout.name_of(batch.keys[item]) for item in window]
            try:
                if len(pages[0]) > self._part_pages:
                    result.versions[window] = await self._put_large(names[0], pages[0])
                else:
                    result.versions[window] = await self._put_small(names, pages)
            except BackendError as error:
                failure = failure or error
        if failure is not None and not result.versions.any():
            raise failure
        result.status[result.versions == 0] = PageStatus.FAILED
        return result

    def _windows(self, page_counts: list[int]) -> Iterator[list[int]]:
        """Objects to send at once, or one large object."""
        pages_max = max(self._part_pages, _WINDOW_BYTES // self._layout.page_bytes)
        window: list[int] = []
        pages = 0
        for item, count in enumerate(page_counts):
            is_large = count > self._part_pages
            if window and (is_large or pages + count > pages_max):
                yield window
                window, pages = [], 0
            if is_large:
                yield [item]
            else:
                window.append(item)
                pages += count
        if window:
            yield window

    async def _put_small(self, names: list[bytes], pages: list[U8]) -> list[int]:
        """Replace objects, each in one transaction; returns their versions, 0 where it failed."""
        versions = [new_version() for _ in names]
        requests = [
            transaction(
                name, pack(b"UNLINK", name), self._pack_first(name, version, some, len(some))
            )
            for name, version, some in zip(names, versions, pages, strict=True)
        ]

        def take(number: int, replies: list[Reply]) -> None:
            if error_in(replies) is not None:
                versions[number] = 0

        await self._servers.exchange(requests, take)
        return versions

    async def _put_large(self, name: bytes, pages: U8) -> int:
        """Write a draft, part by part, and give it the object's name; returns its version or 0.

        The header goes first. It proves that a draft is whole: one that the server removed
        meanwhile, and that a later part made anew, has none, and too few fields.
        """
        version = new_version()
        draft = self._layout.draft_name(name, version)
        keep = pack(b"PEXPIRE", draft, _DRAFT_MS)
        first = self._pack_first(draft, version, pages[: self._part_pages], len(pages))
        # At once with its first part, or a writer that dies in between would leave it for ever.
        is_written = await self._is_done(transaction(name, first, keep))
        for start in range(self._part_pages, len(pages), self._part_pages):
            if not is_written:
                break
            part = pages[start : start + self._part_pages]
            more = pack_with(2 * len(part), pack_pages(start, part), b"HSET", draft)
            is_written = await self._is_done(Request(name, more)) and await self._is_done(
                Request(name, keep)
            )
        if is_written and await self._publish(name, draft, len(pages)):
            return version
        await self._is_done(Request(name, pack(b"UNLINK", draft)))
        return 0

    async def _publish(self, name: bytes, draft: bytes, pages: int) -> bool:
        replies = await self._ask(Request(name, pack(b"HLEN", draft)))
        if replies != [pages + 1]:
            return False
        # Where the draft has gone by now, RENAME is refused, and the old object stays.
        rename = transaction(name, pack(b"PERSIST", draft), pack(b"RENAME", draft, name))
        return await self._is_done(rename)

    async def _is_done(self, request: Request) -> bool:
        return error_in(await self._ask(request)) is None

    async def _ask(self, request: Request) -> list[Reply]:
        got: list[list[Reply]] = []
        await self._servers.exchange([request], lambda _, replies: got.append(replies))
        return got[0]

    def _pack_first(self, name: bytes, version: int, pages: U8, pages_in_all: int) -> bytes:
        """HSET of the header and the first pages."""
        header = self._layout.header(version, pages_in_all)
        packed = pack_pages(0, pages)
        return pack_with(2 * len(pages), packed, b"HSET", name, HEADER_FIELD, header)
