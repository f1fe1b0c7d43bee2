"""Requests of a trace while they are being driven: each gives its next batch when asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from kvtier.cache import TieredCache
from kvtier.errors import TraceError
from kvtier.pages import U32, U64, Purpose, expand_runs
from kvtier.trace import READ, PageRequest, Request

_PURPOSES = tuple(Purpose)


@dataclass(frozen=True, slots=True, eq=False)
class Reads:
    """Pages to read together (u64[n]), and what for."""

    page_ids: U64
    purpose: Purpose


@dataclass(frozen=True, slots=True, eq=False)
class Writes:
    """Whole objects to write, if they do not exist yet."""

    keys: tuple[bytes, ...]
    pages: tuple[int, ...]


Step: TypeAlias = Reads | Writes


class ActiveRequest(Protocol):
    """A request under way."""

    def steps(self) -> Iterator[Step]:
        """Its dependent batches, in order; asked for the next when the last is done."""
        ...


class PageIo:
    """A request of a page-I/O trace: its recorded batches.

    Args:
        request: what was recorded.
        object_ids: u32[k], ids of the trace's objects.
    """

    def __init__(self, request: PageRequest, object_ids: U32) -> None:
        self._request = request
        self._object_ids = object_ids

    def steps(self) -> Iterator[Step]:
        request = self._request
        if (request.ops != READ).any():
            raise TraceError(
                f"request {request.request} writes pages of an object: objects are immutable, "
                "only reads of a page trace can be replayed"
            )
        bases = self._object_ids[request.objects].astype(np.uint64) << np.uint64(32)
        page_ids = expand_runs(bases | request.pages, request.counts)
        start = 0
        ends, purposes = request.page_ends().tolist(), request.purposes.tolist()
        for end, purpose in zip(ends, purposes, strict=True):
            yield Reads(page_ids[start:end], _PURPOSES[purpose])
            start = end


class PrefixLoad:
    """A request of a request trace: it loads the blocks it finds, and writes the others.

    The leading run of its blocks that can be read is loaded in one batch; the rest would be
    computed by the server, which then writes what does not exist yet.

    Args:
        keys: object keys of the request's blocks, in order.
        run: how many of them can be read, from the first.
        page_ids: u64[n], the pages of those.
        pages: of one block.
    """

    def __init__(self, keys: tuple[bytes, ...], run: int, page_ids: U64, pages: int) -> None:
        self._keys = keys
        self._run = run
        self._page_ids = page_ids
        self._pages = pages

    @classmethod
    async def start(cls, request: Request, pages: int, cache: TieredCache[Any]) -> PrefixLoad:
        """Look the request's blocks up."""
        prefix = request.model.encode()
        keys = tuple(b"%s/%x" % (prefix, block) for block in request.block_ids.tolist())
        run = await cache.lookup(keys)
        opened = await cache.open(keys[:run])
        return cls(keys, run, opened.page_ids(), pages)

    def steps(self) -> Iterator[Step]:
        if self._run:
            yield Reads(self._page_ids, Purpose.PREFIX)
        rest = self._keys[self._run :]
        if rest:
            yield Writes(rest, (self._pages,) * len(rest))
