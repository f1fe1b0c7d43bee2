"""Extents out of files, straight into the rows of the caller."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import groupby

from kvtier.backend import ExtentBatch
from kvtier.pages import U8, PageStatus
from kvtier_file.objects import ObjectFiles, Opened


class ExtentReader:
    """Reads one batch; several threads may read different extents of it.

    Args:
        files: where the objects are.
        batch: the extents.
        out: u8[rows, page_bytes].
        status: u8[len(batch)], filled in.
    """

    def __init__(self, files: ObjectFiles, batch: ExtentBatch, out: U8, status: U8) -> None:
        page_bytes = out.shape[1]
        self._files = files
        self._keys = batch.keys
        self._versions = batch.versions.tolist()
        self._key_index = batch.key_index.tolist()
        self._page_bytes = page_bytes
        self._first_bytes = [page * page_bytes for page in batch.first_page.tolist()]
        self._starts = [row * page_bytes for row in batch.row.tolist()]
        self._lengths = [count * page_bytes for count in batch.page_count.tolist()]
        self._out = out.reshape(-1).data
        self._status = status

    def read(self, extents: Iterator[int]) -> None:
        """Read extents by their numbers; a file is opened once per run of the same key."""
        for key, of_key in groupby(extents, self._key_index.__getitem__):
            try:
                opened = self._files.open(self._keys[key], self._versions[key])
            except OSError as error:
                self._files.failures.note("opened", error)
                self._status[list(of_key)] = PageStatus.FAILED
                continue
            if opened is None:
                self._status[list(of_key)] = PageStatus.ABSENT
                continue
            try:
                for extent in of_key:
                    self._status[extent] = self._read_extent(opened, extent)
            finally:
                os.close(opened.fd)

    def _read_extent(self, opened: Opened, extent: int) -> PageStatus:
        """ABSENT past the end of the object; FAILED on an error, or if the file was cut short."""
        start, length = self._starts[extent], self._lengths[extent]
        at_bytes = self._first_bytes[extent]
        if at_bytes + length > opened.pages * self._page_bytes:
            return PageStatus.ABSENT
        rows = self._out[start : start + length]
        while rows:
            try:
                count = os.preadv(opened.fd, [rows], at_bytes)
            except OSError as error:
                self._files.failures.note("read", error)
                return PageStatus.FAILED
            if count == 0:
                self._files.failures.note("read", OSError("its file was cut short"))
                return PageStatus.FAILED
            rows = rows[count:]
            at_bytes += count
        return PageStatus.OK
