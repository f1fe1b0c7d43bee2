"""Where the payload of a reply goes: straight into the caller's rows where it can."""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.backend import ExtentBatch
from kvtier.errors import ProtocolError
from kvtier.pages import I64, U8, PageStatus

_RUN_BYTES_MIN: Final = 32 << 10
"""Average run of adjacent rows from which on a receive of its own is cheaper than one more copy."""


class Placement:
    """Takes the pages of one READ_REPLY, which come in the order of the extents.

    Rows that lie together are received in place. Where they are scattered so widely that the
    event loop would turn once per page, they are received apart and copied at once.
    """

    def __init__(self, batch: ExtentBatch, out: U8) -> None:
        self._batch = batch
        self._out = out
        self._apart: U8 | None = None
        self._rows: I64 = np.empty(0, np.int64)

    def place(self, status: U8, payload_bytes: int) -> list[memoryview]:
        """Buffers for the payload; ProtocolError where it is not what was asked for."""
        batch, page_bytes = self._batch, self._out.shape[1]
        if len(status) != len(batch):
            raise ProtocolError(f"{len(status)} statuses came for {len(batch)} extents")
        failed = np.count_nonzero(status)
        rows = None if failed else batch.rows()
        if rows is not None and len(rows) * page_bytes == payload_bytes:
            return [self._run(rows.start, rows.stop)]
        first, pages = batch.row.astype(np.int64), batch.page_count.astype(np.int64)
        if failed:
            is_ok = status == PageStatus.OK
            first, pages = first[is_ok], pages[is_ok]
        wanted_bytes = int(pages.sum()) * page_bytes
        if payload_bytes != wanted_bytes:
            raise ProtocolError(f"a payload of {payload_bytes} bytes came for {wanted_bytes}")
        if payload_bytes == 0:
            return []
        last = first + pages
        breaks = np.flatnonzero(first[1:] != last[:-1])
        if len(breaks) == 0:
            return [self._run(int(first[0]), int(last[-1]))]
        if len(breaks) * _RUN_BYTES_MIN > payload_bytes:
            self._rows = _rows_of(first, pages)
            self._apart = np.empty((len(self._rows), page_bytes), np.uint8)
            return [self._apart.reshape(-1).data]
        starts = first[np.concatenate(([0], breaks + 1))].tolist()
        stops = last[np.concatenate((breaks, [len(last) - 1]))].tolist()
        return [self._run(start, stop) for start, stop in zip(starts, stops, strict=True)]

    def _run(self, start: int, stop: int) -> memoryview:
        return self._out[start:stop].reshape(-1).data

    def finish(self) -> None:
        """The payload is complete."""
        if self._apart is not None:
            self._out[self._rows] = self._apart


def _rows_of(first: I64, pages: I64) -> I64:
    """The row of every page: runs of ``pages`` rows from ``first`` on."""
    before = np.cumsum(pages) - pages
    return np.repeat(first - before, pages) + np.arange(int(pages.sum()))
