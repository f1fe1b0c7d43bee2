"""Requests of a trace while they are being driven: each gives its next batch when asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from kvtier.cache import TieredCache
from kvtier.errors import TraceError
from kvtier.pages import U32, U64, Purpose, expand_runs
from kvtier.trace import READ, PageRequest, Request

_PURPOSES = tuple(Purpose)


class Reads(NamedTuple):
    """Pages to read together.

    Attributes:
        page_ids: u64[n].
        purpose: what for.
        gap_ns: recorded time since the batch before was issued; 0 for the first.
    """

    page_ids: U64
    purpose: Purpose
    gap_ns: int = 0


class Writes(NamedTuple):
    """Whole objects to write, if they do not exist yet."""

    keys: tuple[bytes, ...]
    pages: tuple[int, ...]


Step: TypeAlias = Reads | Writes


class ActiveRequest(Protocol):
    """A request under way.

    Attributes:
        t_ns: its recorded arrival, in ns from an arbitrary start.
    """

    @property
    def t_ns(self) -> int: ...

    async def begin(self) -> None:
        """Find out what there is to read; called once, before :meth:`steps`."""
        ...

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

    @property
    def t_ns(self) -> int:
        return int(self._request.t_ns[0])

    async def begin(self) -> None:
        """Nothing: its objects are open."""

    def steps(self) -> Iterator[Step]:
        request = self._request
        if (request.ops != READ).any():
            raise TraceError(
                f"request {request.request} writes pages of an object: objects are immutable, "
                "only reads of a page trace can be replayed"
            )
        bases = self._object_ids[request.objects].astype(np.uint64) << np.uint64(32)
        page_ids = expand_runs(bases | request.pages, request.counts)
        start, before_ns = 0, self.t_ns
        columns = (request.page_ends(), request.purposes, request.t_ns)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for end, purpose, t_ns in rows:
            yield Reads(page_ids[start:end], _PURPOSES[purpose], t_ns - before_ns)
            start, before_ns = end, t_ns


def block_keys(request: Request) -> tuple[bytes, ...]:
    """The objects that hold the blocks of a request's prompt, first token first."""
    prefix = request.model.encode()
    return tuple(b"%s/%x" % (prefix, block) for block in request.block_ids.tolist())


class PrefixLoad:
    """A request of a request trace: it loads the blocks it finds, and writes the others.

    The leading run of its blocks that can be read is loaded in one batch; the rest would be
    computed by the server, which then writes what does not exist yet.

    Args:
        request: what was recorded.
        pages: of one block.
        cache: where its blocks are looked up.
    """

    def __init__(self, request: Request, pages: int, cache: TieredCache[Any]) -> None:
        self.t_ns = request.t_ns
        self._keys = block_keys(request)
        self._pages = pages
        self._cache = cache
        self._run = 0
        self._page_ids: U64 = np.empty(0, np.uint64)

    async def begin(self) -> None:
        """Look the request's blocks up."""
        self._run = await self._cache.lookup(self._keys)
        opened = await self._cache.open(self._keys[: self._run])
        self._page_ids = opened.page_ids()

    def steps(self) -> Iterator[Step]:
        if self._run:
            yield Reads(self._page_ids, Purpose.PREFIX)
        rest = self._keys[self._run :]
        if rest:
            yield Writes(rest, (self._pages,) * len(rest))
