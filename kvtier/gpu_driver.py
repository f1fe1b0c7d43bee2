"""The asyncio driver where the first tier lies on a GPU, which may fail; page ids may lie there."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, cast

import numpy as np

from kvtier.answers import Parts
from kvtier.chain import Action, Chain, Copy, Fill, Lookup, Read
from kvtier.chain.second_touch import SecondTouch
from kvtier.clock import Clock
from kvtier.driver import AsyncDriver
from kvtier.errors import DeviceLostError
from kvtier.gpu import DeviceIds, DeviceRows, PageIds, Rows
from kvtier.index.lost import LosableIndex
from kvtier.levels import Levels
from kvtier.pages import I64, U64, Bool, Purpose, all_hit
from kvtier.tiers import CudaTier

logger = logging.getLogger(__name__)


class GpuDriver(AsyncDriver):
    """Looks up page ids where they lie, and goes on without the first tier when its GPU is lost.

    Arguments are those of :class:`AsyncDriver`. Of DeviceRows, an OK row is *enqueued*: it is there
    for what their stream does next. Rows of DeviceIds are FAILED if those are lost with the GPU.
    """

    def __init__(
        self,
        chain: Chain,
        levels: Levels,
        page_bytes: int,
        clock: Clock,
        deadline_s: float | None = None,
    ) -> None:
        super().__init__(chain, levels, page_bytes, clock, deadline_s)
        first = levels.tiers[0]
        assert isinstance(first, CudaTier)
        self._first_index = LosableIndex(first.index, self._lose_gpu)
        self.indexes = (self._first_index, *self.indexes[1:])

    async def hold(self, page_ids: PageIds) -> tuple[Read, I64]:
        """As of every driver; the slots of DeviceIds are on the GPU, unless it is lost."""
        if not isinstance(page_ids, DeviceIds):
            return await super().hold(page_ids)
        await self._until_ready(page_ids)
        page_ids = self.gpu_memory.copied(page_ids)
        read = await self._start(page_ids, None, held=True)
        await self._finish(read)
        try:
            return read, self.gpu_memory.slots(page_ids)
        except DeviceLostError as error:
            self._lose_gpu(error)
        return read, self._first_index.peek(cast("U64", page_ids))

    async def _start(
        self,
        page_ids: PageIds,
        out: Rows | None,
        *,
        held: bool = False,
        purpose: Purpose = Purpose.UNSTATED,
        parts: Parts | None = None,
    ) -> Read:
        if isinstance(page_ids, DeviceIds):
            self.check()
            await self._until_ready(page_ids)
        return await super()._start(page_ids, out, held=held, purpose=purpose, parts=parts)

    async def _until_ready(self, page_ids: DeviceIds) -> None:
        """Before the tier's stream is given anything, for it would hold up everybody's lookups."""
        try:
            await self.gpu_memory.until_ready(page_ids)
        except DeviceLostError as error:
            self._lose_gpu(error)
            raise

    # -- actions ------------------------------------------------------------------------------

    def look_up(self, action: Lookup) -> Iterable[Action]:
        """As every driver does; page ids that are lost with the GPU are told to the chain."""
        page_ids: object = action.page_ids
        if not isinstance(page_ids, DeviceIds):
            return super().look_up(action)
        rows = self._jobs[action.ticket.epoch].rows
        try:
            if isinstance(rows, DeviceRows):
                epochs = action.epoch, action.oldest_epoch
                hits: Any = self.gpu_memory.tier().serve(page_ids, rows, *epochs)
                if hits is not None:
                    return self.chain.looked_up(action, all_hit(hits))
            return super().look_up(action)
        except DeviceLostError as error:
            self._lose_gpu(error)
            return self.chain.not_looked_up(action)

    def admit(self, action: Lookup) -> Bool | None:
        """As every driver does, wherever the page ids lie."""
        page_ids: object = action.page_ids
        if not isinstance(page_ids, DeviceIds):
            return super().admit(action)
        if action.only_resident or isinstance(action.admit, SecondTouch):
            # What the levels below have, and what was missed before, is known to the host.
            return self.admitted(action, self.gpu_memory.fetched(page_ids))
        return self.gpu_memory.admitted(page_ids, action.epoch, action.admit)

    def copy(self, action: Copy) -> Iterable[Action]:
        """As every driver does; what cannot be copied is sought below, or lost with the GPU."""
        try:
            return super().copy(action)
        except DeviceLostError as error:
            self._lose_gpu(error)
        job = self._jobs[action.read.epoch]
        if isinstance(job.rows, DeviceRows) or not isinstance(action.read.page_ids, np.ndarray):
            return self.chain.uncopied(action, seek=False)
        self._tasks.spawn(self._seek_below(action))
        return ()

    def fill(self, action: Fill) -> Iterable[Action]:
        """As every driver does; slots of a tier that is lost stay empty."""
        try:
            return super().fill(action)
        except DeviceLostError as error:
            self._lose_gpu(error)
            return self.chain.filled(action, np.zeros(len(action.slots), np.bool_))

    # -- the GPU, lost ------------------------------------------------------------------------

    def _lose_gpu(self, error: DeviceLostError) -> None:
        """From now on the first tier misses everything."""
        if self.gpu_memory.lose(error):
            self._first_index.lose()
            self.chain.lose_memory()
            logger.warning("hbm is lost, its pages are read from the levels below: %s", error)

    async def _seek_below(self, action: Copy) -> None:
        job, page_ids = self._jobs[action.read.epoch], action.read.page_ids
        await self._find_room(page_ids if action.rows is None else page_ids[action.rows])
        self.perform(self.chain.uncopied(action, seek=True))
        job.settle()
