"""The levels of a cache on real devices: where their bytes are, and how they move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from kvtier.chain import Copy, Extents, Fetch, Fill, Flight
from kvtier.errors import DeviceError, DeviceLostError, LimitError
from kvtier.gpu import Array, DeviceIds, DeviceRows, Rows, device_calls, device_rows, stream_of
from kvtier.origin import Origin
from kvtier.pages import U8
from kvtier.rows import aligned_rows, copy_rows
from kvtier.tiers import CudaTier, MemoryTier, NvmeTier, Tier


class Levels:
    """Tiers, the origin behind them, and the staging buffers between.

    Calls that move bytes between memories have moved them when they return. A first tier on a GPU
    that fails is lost: :meth:`lose_gpu` says so, and from then on nothing is asked of it.

    Args:
        tiers: in the chain's order.
        origin: the last level, or None.
        page_bytes: bytes of a page.
        buffers: staging buffers.
        buffer_pages: pages of each.
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
        self._gpu = tiers[0] if tiers and isinstance(tiers[0], CudaTier) else None
        self._gpu_lost: str | None = None  # why; the error itself would keep its frames

    def __len__(self) -> int:
        return len(self.tiers) + (self._origin is not None)

    @property
    def origin_available(self) -> bool:
        """Whether a page that no tier has would be asked for; without an origin there is none."""
        return self._origin is None or self._origin.available

    def name(self, level: int) -> str:
        """For messages."""
        return "origin" if level == len(self.tiers) else self.tiers[level].name

    def device_rows(self, memory: object, stream: int | None) -> DeviceRows:
        """Memory of the first tier's GPU as rows; arguments as of ``kvtier.gpu.device_rows``.

        Raises:
            LimitError: the first tier is on no GPU, or the memory is not on that.
            DeviceLostError: the GPU has failed.
        """
        rows = device_rows(self._check_memory("out", memory).gpu, memory, stream)
        if rows is None:
            raise LimitError(f"out is a {_name(memory)} in host memory: give a NumPy array over it")
        return rows

    def device_ids(self, memory: object, stream: int | None) -> DeviceIds:
        """Page ids in memory of the first tier's GPU; arguments and errors as of ``device_rows``.

        Raises:
            LimitError: also, if the memory is no u64[n].
        """
        tier = self._check_memory("page_ids", memory)
        array = tier.gpu.adopt(memory)
        if array is None:
            name = _name(memory)
            raise LimitError(f"page_ids is a {name} in host memory: give a NumPy array over it")
        check_page_ids(array)
        return tier.index.take(array, stream_of(tier.gpu, stream))

    def new_device_rows(self, count: int, stream: int | None) -> DeviceRows:
        """Memory of the first tier's GPU for pages, which belongs to a stream.

        Raises:
            DeviceError: there is none left.
        """
        assert self._gpu is not None
        gpu, shape = self._gpu.gpu, (count, self._staging.shape[1])
        owner = stream_of(gpu, stream)
        try:
            with gpu.on(owner):
                return DeviceRows(gpu.xp.empty(shape, np.uint8), owner)
        except gpu.errors as error:
            raise DeviceError(f"the GPU has no memory for {count} pages: {error}") from error

    def apply(self, function: Callable[[Array], Array], page_ids: DeviceIds) -> Array:
        """See :meth:`kvtier.tiers.cuda_index.StreamIndex.apply`."""
        return self._alive("page_ids").index.apply(function, page_ids)

    def peek(self, page_ids: DeviceIds) -> Array:
        """The first tier's slot of each page, or -1 (i64[n]), on the GPU."""
        return self._alive("page_ids").index.peek_there(page_ids)

    def gpu_calls(self) -> AbstractContextManager[None]:
        """Within, a failure of the first tier's GPU is a DeviceLostError."""
        return device_calls(self._alive("page_ids").gpu)

    def copy(self, action: Copy, rows: Rows) -> None:
        """Bring pages to the caller.

        Raises:
            DeviceLostError: the GPU has failed that they are on, or should go to.
        """
        flight = action.flight
        if isinstance(rows, DeviceRows):
            self._check_gpu(self._gpu)
        if flight is None or flight.buffer < 0:
            source = self._memory(action.level)
            self._check_gpu(source)
            source.gather(action.sources, rows, action.rows)
        elif isinstance(rows, DeviceRows):
            assert self._gpu is not None
            self._gpu.bring(rows, action.rows, self._buffer(flight.buffer), action.sources)
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
        self._check_gpu(tier)
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

    def lose_gpu(self, error: DeviceLostError) -> bool:
        """Ask nothing of the first tier's GPU any more; returns whether that is news."""
        is_news = self._gpu_lost is None
        if is_news:
            self._gpu_lost = str(error)
        return is_news

    def _check_memory(self, what: str, memory: object) -> CudaTier:
        """The first tier, if it is on a GPU that works and may have ``memory``."""
        if self._gpu is None:
            name = _name(memory)
            raise LimitError(f"{what} is a {name}, and no tier is on a GPU: give a NumPy array")
        return self._alive(what)

    def _alive(self, what: str) -> CudaTier:
        assert self._gpu is not None
        if self._gpu_lost is not None:
            raise DeviceLostError(f"{self._gpu_lost}; give {what} in host memory")
        return self._gpu

    def _check_gpu(self, tier: MemoryTier | None) -> None:
        """Nothing is asked of a GPU that has failed, whether or not it would answer."""
        if self._gpu_lost is not None and tier is self._gpu:
            raise DeviceLostError(self._gpu_lost)

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


def check_page_ids(page_ids: Array) -> None:
    """Refuse what are no page ids, wherever they lie.

    Raises:
        LimitError: they are no u64[n].
    """
    if page_ids.dtype != np.uint64 or page_ids.ndim != 1:
        raise LimitError(
            f"page_ids is {page_ids.dtype}{list(page_ids.shape)}: it must be uint64[n]"
        )


def _name(memory: object) -> str:
    return f"{type(memory).__module__.partition('.')[0]}.{type(memory).__name__}"
