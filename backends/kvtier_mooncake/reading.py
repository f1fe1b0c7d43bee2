"""Extents out of chunks: heads first, then all ranges of all chunks in one call."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kvtier.backend import ExtentBatch
from kvtier.pages import I64, U8, PageStatus
from kvtier_mooncake.codes import NOT_FOUND, NOT_READY
from kvtier_mooncake.heads import Found, find_heads
from kvtier_mooncake.layout import Head, Names, chunk_name
from kvtier_mooncake.workers import Gate


class _Objects(NamedTuple):
    """What is known of k objects: what an extent of each is answered, and how they are cut."""

    status: U8
    pages: I64
    chunk_pages: I64


class _Pieces(NamedTuple):
    """Extents cut at the bounds of chunks: n pieces, those of a chunk one after the other.

    ``row`` is where a piece lies in the slot; ``first`` is its first page inside the chunk.
    """

    extent: I64
    chunk: I64
    first: I64
    pages: I64
    row: I64


class ExtentReader:
    """Reads one batch; several threads may read different extents of it.

    Args:
        store: Mooncake's client.
        names: of the objects.
        batch: the extents.
        out: u8[rows, page_bytes].
        gate: what ``out`` is written through.
    """

    def __init__(self, store: Any, names: Names, batch: ExtentBatch, out: U8, gate: Gate) -> None:
        self._store = store
        self._names = names
        self._batch = batch
        self._out = out
        self._gate = gate

    def read(self, extents: slice, slot: U8) -> U8:
        """Read extents whose pages fit into ``slot``; u8[extents] of their status."""
        batch = self._batch
        keys, key = np.unique(batch.key_index[extents], return_inverse=True)
        heads = [self._names.head(batch.keys[index]) for index in keys.tolist()]
        found = find_heads(self._store, heads, slot)
        objects = _objects(found, batch.versions[keys].tolist())
        first = batch.first_page[extents].astype(np.int64)
        count = batch.page_count[extents].astype(np.int64)
        status = objects.status[key]
        status[(status == PageStatus.OK) & (first + count > objects.pages[key])] = PageStatus.ABSENT
        there = np.flatnonzero(status == PageStatus.OK)
        if len(there) == 0:
            return status
        key, first, count = key[there], first[there], count[there]
        pieces = _cut(key, first, count, objects.chunk_pages[key])
        pages = slot[: int(count.sum()) * self._out.shape[1]].reshape(-1, self._out.shape[1])
        piece_status = self._fetch(pieces, key, heads, found, pages)
        # FAILED is the larger: an extent with a piece that failed has failed.
        np.maximum.at(status, there[pieces.extent], piece_status)
        self._deliver(batch.row[extents][there], count, status[there], pages)
        return status

    def _fetch(
        self, pieces: _Pieces, key: I64, heads: list[str], found: list[Found], pages: U8
    ) -> U8:
        """Read pieces into their rows of ``pages``; u8[pieces] of their status."""
        owner = key[pieces.extent]
        new = np.r_[True, (np.diff(owner) != 0) | (np.diff(pieces.chunk) != 0)]
        starts = np.flatnonzero(new)
        names = []
        for index, number in zip(
            owner[starts].tolist(), pieces.chunk[starts].tolist(), strict=True
        ):
            head = found[index]
            assert isinstance(head, Head)
            names.append(chunk_name(heads[index], head.version, number))
        page_bytes = pages.shape[1]
        ends = [*starts[1:].tolist(), len(owner)]
        bounds = list(zip(starts.tolist(), ends, strict=True))
        columns = (pieces.row, pieces.first, pieces.pages)
        row, first, size = ((column * page_bytes).tolist() for column in columns)
        (codes,) = self._store.get_into_ranges(
            [pages.ctypes.data],
            [names],
            [[row[start:end] for start, end in bounds]],
            [[first[start:end] for start, end in bounds]],
            [[size[start:end] for start, end in bounds]],
        )
        return _status_of(np.array([code for chunk in codes for code in chunk], np.int64))

    def _deliver(self, row: Any, count: I64, status: U8, pages: U8) -> None:
        """Copy the pages of extents that are OK to the caller."""
        wanted = np.repeat(status == PageStatus.OK, count)
        start = np.repeat(row.astype(np.int64) - (np.cumsum(count) - count), count)
        rows = start + np.arange(len(pages))
        if not wanted.all():
            rows, pages = rows[wanted], pages[wanted]
        self._gate.pass_through(lambda: self._out.__setitem__(rows, pages))


def _objects(found: list[Found], versions: list[int]) -> _Objects:
    status = [_answer(one, wanted) for one, wanted in zip(found, versions, strict=True)]
    heads = [one if isinstance(one, Head) else Head(0, 0, 1) for one in found]
    return _Objects(
        np.array(status, np.uint8),
        np.array([head.pages for head in heads], np.int64),
        np.array([head.chunk_pages for head in heads], np.int64),
    )


def _answer(found: Found, version: int) -> PageStatus:
    if isinstance(found, Head):
        return PageStatus.OK if found.version == version else PageStatus.ABSENT
    return PageStatus.ABSENT if found == NOT_FOUND else PageStatus.FAILED


def _cut(key: I64, first: I64, count: I64, chunk_pages: I64) -> _Pieces:
    """Cut extents of objects ``key`` at their chunks; they lie in the slot one after the other."""
    first_chunk = first // chunk_pages
    pieces = (first + count - 1) // chunk_pages - first_chunk + 1
    extent = np.repeat(np.arange(len(first)), pieces)
    within = np.arange(len(extent)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    chunk = first_chunk[extent] + within
    start = chunk * chunk_pages[extent]
    low = np.maximum(first[extent], start)
    high = np.minimum((first + count)[extent], start + chunk_pages[extent])
    row = (np.cumsum(count) - count - first)[extent] + low
    order = np.lexsort((chunk, key[extent]))
    columns = (extent, chunk, low - start, high - low, row)
    return _Pieces(*(column[order] for column in columns))


def _status_of(codes: I64) -> U8:
    """A chunk that is gone was evicted, or its object was replaced meanwhile."""
    gone = (codes == NOT_FOUND) | (codes == NOT_READY)
    failed = np.where(codes < 0, PageStatus.FAILED, PageStatus.OK)
    return np.where(gone, PageStatus.ABSENT, failed).astype(np.uint8)
