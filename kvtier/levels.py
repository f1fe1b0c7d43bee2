"""The levels of a cache on real devices: where their bytes are, and how they move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvtier.chain import Copy, Extents, Fetch, Fill, Flight, Move
from kvtier.gpu import DeviceRows, Rows
from kvtier.gpu_memory import GpuMemory
from kvtier.origin import Origin
from kvtier.pages import U8
from kvtier.rows import aligned_rows, copy_rows
from kvtier.tiers import MemoryTier, NvmeTier, Tier


class Levels:
    """Tiers, the origin behind them, and the staging buffers between.

    Calls that move bytes between memories have moved them when they return. A first tier on a GPU
    that fails is lost: :attr:`gpu_memory` is told, and from then on nothing is asked of it.

    Args:
        tiers: in the chain's order.
        origin: the last level, or None.
        page_bytes: bytes of a page.
        buffers: staging buffers.
        buffer_pages: pages of each.

    Attributes:
        gpu_memory: of callers, on the first tier's GPU.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        origin: Origin | None,
        page_bytes: int,
        buffers: int,
        buffer_pages: int,
    ) -> None:
        self.tiers = tuple(tiers)
        self._origin = origin
        self._buffer_pages = buffer_pages
        self._staging = aligned_rows(buffers * buffer_pages, page_bytes)
        for tier in tiers:
            if isinstance(tier, NvmeTier):
                tier.pin(self._staging)
        self.gpu_memory = GpuMemory(tiers[0] if tiers else None, page_bytes)

    def __len__(self) -> int:
        return len(self.tiers) + (self._origin is not None)

    @property
    def origin_available(self) -> bool:
        """Whether a page that no tier has would be asked for; without an origin there is none."""
        return self._origin is None or self._origin.available

    def name(self, level: int) -> str:
        """For messages."""
        return "origin" if level == len(self.tiers) else self.tiers[level].name

    def copy(self, action: Copy, rows: Rows) -> None:
        """Bring pages to the caller.

        Raises:
            DeviceLostError: the GPU has failed that they are on, or should go to.
        """
        flight = action.flight
        gpu_tier = self.gpu_memory.tier() if isinstance(rows, DeviceRows) else None
        if flight is None or flight.buffer < 0:
            source = self._memory(action.level)
            self.gpu_memory.check(source)
            source.gather(action.sources, rows, action.rows)
        elif isinstance(rows, DeviceRows):
            assert gpu_tier is not None
            gpu_tier.bring(rows, action.rows, self._buffer(flight.buffer), action.sources)
        else:
            copy_rows(rows, action.rows, self._buffer(flight.buffer), action.sources)

    def fill(self, action: Fill, written: U8 | None) -> None:
        """Bring pages into a tier in memory.

        Args:
            action: which, and from where.
            written: u8[n, page_bytes], the payload of the write that they come from, if they do.

        Raises:
            DeviceLostError: the tier's GPU has failed.
        """
        tier = self._memory(action.level)
        self.gpu_memory.check(tier)
        origin = action.origin
        if isinstance(origin, Flight) and origin.buffer < 0:
            tier.transfer(action.slots, self._memory(origin.source), action.sources)
        else:
            tier.scatter(action.slots, self._source(action, written), action.sources)

    async def read(self, action: Fetch) -> tuple[U8, Extents]:
        """Read extents of a device into their buffer.

        Returns:
            u8[n], a ``PageStatus`` per page of the flight, and what the device was asked for.
        """
        flight, extents = action.flight, action.extents
        buffer = self._buffer(action.buffer)
        if action.level == len(self.tiers):
            assert self._origin is not None
            return await self._origin.read(extents, flight.rows, buffer)
        tier = self.tiers[action.level]
        assert isinstance(tier, NvmeTier)
        first = extents.first.astype(np.int64)
        status = await tier.read(
            first, extents.count, extents.row, buffer, flight.page_ids, flight.slots, flight.rows
        )
        return status, extents

    async def write(self, action: Fill, written: U8 | None) -> U8:
        """Write pages to a device; arguments as of :meth:`fill`. Returns their status (u8[n])."""
        tier = self.tiers[action.level]
        assert isinstance(tier, NvmeTier)
        source = self._source(action, written)
        return await tier.write(action.slots, action.page_ids, source, action.sources)

    async def move(self, action: Move) -> U8:
        """Write pages of a device elsewhere in it. Returns their status (u8[m])."""
        tier = self.tiers[action.level]
        assert isinstance(tier, NvmeTier)
        moves = action.moves
        return await tier.move(moves.sources, moves.targets, moves.page_ids)

    def _memory(self, level: int) -> MemoryTier:
        tier = self.tiers[level]
        assert not isinstance(tier, NvmeTier)
        return tier

    def _source(self, action: Fill, written: U8 | None) -> U8:
        if isinstance(action.origin, Flight):
            return self._buffer(action.origin.buffer)
        assert written is not None
        return written

    def _buffer(self, number: int) -> U8:
        return self._staging[number * self._buffer_pages : (number + 1) * self._buffer_pages]
