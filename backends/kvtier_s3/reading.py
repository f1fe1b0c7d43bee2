"""Performs a plan of reads: answers are copied into the caller's rows as they come."""

from __future__ import annotations

import numpy as np

from kvtier.backend import ExtentBatch, empty_status
from kvtier.pages import U8, PageStatus
from kvtier_s3.objects import S3Objects
from kvtier_s3.planning import ReadPlan


class Reader:
    """One batch being read.

    A request writes to the caller's rows on the thread of the event loop, once its answer is
    complete: a request that was cancelled writes nothing.

    Attributes:
        status: u8[extents], so far.

    Args:
        objects: the store.
        batch: the extents.
        plan: the requests that bring them.
        out: u8[rows, page_bytes].
    """

    def __init__(self, objects: S3Objects, batch: ExtentBatch, plan: ReadPlan, out: U8) -> None:
        self.status = empty_status(len(batch))
        self._objects = objects
        self._keys = batch.keys
        self._versions = batch.versions.tolist()
        self._plan = plan
        self._page_bytes = out.shape[1]
        self._rows = out.reshape(-1).data

    async def perform(self, request: int) -> None:
        """Perform one request of the plan."""
        plan = self._plan
        key = int(plan.key_index[request])
        status, data = await self._objects.read(
            self._keys[key],
            self._versions[key],
            int(plan.first_page[request]),
            int(plan.stop_page[request]),
        )
        pieces = slice(int(plan.pieces[request]), int(plan.pieces[request + 1]))
        if data is None:
            self._worsen(pieces, np.full(pieces.stop - pieces.start, status, np.uint8))
        else:
            self._take(pieces, memoryview(data))

    def _take(self, pieces: slice, data: memoryview) -> None:
        """Copy what came; only what is past the end of its object is ABSENT."""
        plan, page_bytes, rows = self._plan, self._page_bytes, self._rows
        offsets, counts = plan.offset[pieces], plan.page_count[pieces]
        is_there = offsets + counts <= len(data) // page_bytes
        for offset, count, row, is_ok in zip(
            (offsets * page_bytes).tolist(),
            (counts * page_bytes).tolist(),
            (plan.row[pieces] * page_bytes).tolist(),
            is_there.tolist(),
            strict=True,
        ):
            if is_ok:
                rows[row : row + count] = data[offset : offset + count]
        if not is_there.all():
            absent = np.where(is_there, PageStatus.OK, PageStatus.ABSENT).astype(np.uint8)
            self._worsen(pieces, absent)

    def _worsen(self, pieces: slice, status: U8) -> None:
        """An extent is as well as the worst of its pieces."""
        np.maximum.at(self.status, self._plan.extent[pieces], status)
