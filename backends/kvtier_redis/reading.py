"""One read: the commands that it takes, and where the pages of their replies go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from kvtier.backend import ExtentBatch, empty_status
from kvtier.pages import U8, PageStatus
from kvtier_redis.commands import Reply, Request, pack_with
from kvtier_redis.layout import FIELD_BYTES, HEADER_FIELD, Layout, pack_fields

_COMMAND_BYTES: Final = 1 << 20
"""Pages of one command: a reply is in memory whole before it is copied."""

_WINDOW_BYTES: Final = 8 << 20
"""Pages that are asked for at once: a server keeps in memory what it has not sent."""


class _Command(NamedTuple):
    """An HMGET of pages ``start`` to ``stop`` of the read, all of one object."""

    key: int
    start: int
    stop: int


class PageReader:
    """Pages of a batch, in the order of their objects, become commands.

    Attributes:
        status: u8[len(batch)], of each extent; right once all replies were taken.
    """

    def __init__(self, batch: ExtentBatch, out: U8, layout: Layout) -> None:
        self._keys = batch.keys
        self._layout = layout
        self._versions = batch.versions.tolist()
        self._rows = out.reshape(-1).data
        self.status = empty_status(len(batch))
        counts = batch.page_count.astype(np.int64)
        extent = np.repeat(np.arange(len(batch)), counts)
        within = np.arange(len(extent)) - np.repeat(np.cumsum(counts) - counts, counts)
        order = np.argsort(batch.key_index[extent], kind="stable")
        extent, within = extent[order], within[order]
        self._extent = extent
        self._key = batch.key_index[extent]
        self._start_byte = (batch.row[extent] + within) * layout.page_bytes
        self._stop_page = batch.first_page + counts
        self._fields = pack_fields(batch.first_page[extent] + within)

    def windows(self) -> Iterator[list[_Command]]:
        """Commands to send at once, for one after the other."""
        page_bytes = self._layout.page_bytes
        pages_max, command_pages = _WINDOW_BYTES // page_bytes, max(1, _COMMAND_BYTES // page_bytes)
        window: list[_Command] = []
        pages = 0
        ends = [*(np.flatnonzero(np.diff(self._key)) + 1).tolist(), len(self._key)]
        start = 0
        for end in ends if len(self._key) else ():
            key = int(self._key[start])
            for first in range(start, end, command_pages):
                stop = min(first + command_pages, end)
                if window and pages + stop - first > pages_max:
                    yield window
                    window, pages = [], 0
                window.append(_Command(key, first, stop))
                pages += stop - first
            start = end
        if window:
            yield window

    def request(self, command: _Command) -> Request:
        """A command as it is sent."""
        key, start, stop = command
        name = self._layout.name_of(self._keys[key])
        fields = self._fields[start * FIELD_BYTES : stop * FIELD_BYTES]
        return Request(name, pack_with(stop - start, fields, b"HMGET", name, HEADER_FIELD))

    def take(self, window: list[_Command], number: int, replies: list[Reply]) -> None:
        """Copy the pages of a reply into their rows, or say what became of their extents."""
        reply = replies[0]
        key, start, stop = window[number]
        if not isinstance(reply, list) or len(reply) != stop - start + 1:
            # A key of another type is a foreign thing where the object would be.
            is_foreign = isinstance(reply, Exception) and str(reply).startswith("WRONGTYPE")
            self._mark(slice(start, stop), PageStatus.ABSENT if is_foreign else PageStatus.FAILED)
            return
        found = self._layout.read_header(reply[0])
        if found is None or found[1] != self._versions[key]:
            self._mark(slice(start, stop), PageStatus.ABSENT)
            return
        del reply[0]
        rows, page_bytes = self._rows, self._layout.page_bytes
        starts = self._start_byte[start:stop].tolist()
        try:
            # Memoryviews: a quarter of the cost of slices of arrays, and they check the length.
            for row, page in zip(starts, reply, strict=True):
                rows[row : row + page_bytes] = page
        except (TypeError, ValueError):
            self._take_in_part(start, starts, reply, found[0])

    def _take_in_part(
        self, start: int, starts: list[int], pages: list[Any], object_pages: int
    ) -> None:
        """Pages some of which are past the end of their object, lost, or of another length."""
        page_bytes = self._layout.page_bytes
        for index, (row, page) in enumerate(zip(starts, pages, strict=True), start):
            if isinstance(page, bytes) and len(page) == page_bytes:
                self._rows[row : row + page_bytes] = page
            else:
                is_past = self._stop_page[self._extent[index]] > object_pages
                status = PageStatus.ABSENT if is_past else PageStatus.FAILED
                self._mark(slice(index, index + 1), status)

    def _mark(self, pages: slice, status: PageStatus) -> None:
        self.status[self._extent[pages]] = status
