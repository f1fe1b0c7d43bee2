"""Memory of callers on the GPU of a cache's first tier: page ids there, and rows for pages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from functools import partial

import numpy as np

from kvtier.chain.admission import admitted
from kvtier.errors import DeviceError, DeviceLostError, LimitError
from kvtier.gpu import Array, DeviceIds, DeviceRows, device_calls, device_rows, stream_of
from kvtier.pages import I64, U64, Bool
from kvtier.tiers import CudaTier, Tier


class GpuMemory:
    """Takes memory over, and knows whether the GPU still works.

    Args:
        tier: the first one, if there is any.
        page_bytes: bytes of a page.
    """

    def __init__(self, tier: Tier | None, page_bytes: int) -> None:
        self._tier = tier if isinstance(tier, CudaTier) else None
        self._page_bytes = page_bytes
        self._lost: str | None = None  # why; the error itself would keep its frames

    def lose(self, error: DeviceLostError) -> bool:
        """Ask nothing of the GPU any more; returns whether that is news."""
        is_news = self._lost is None
        if is_news:
            self._lost = str(error)
        return is_news

    def check(self, tier: Tier) -> None:
        """Nothing is asked of a GPU that has failed, whether or not it would answer.

        Raises:
            DeviceLostError: ``tier`` is on it.
        """
        if self._lost is not None and tier is self._tier:
            raise DeviceLostError(self._lost)

    def tier(self) -> CudaTier:
        """The tier on the GPU, which must be there.

        Raises:
            DeviceLostError: the GPU has failed.
        """
        assert self._tier is not None
        self.check(self._tier)
        return self._tier

    def rows(self, memory: object, stream: int | None) -> DeviceRows:
        """Memory as rows; arguments as of :func:`kvtier.gpu.device_rows`.

        Raises:
            LimitError: the first tier is on no GPU, or the memory is not on that.
            DeviceLostError: the GPU has failed.
        """
        tier = self._tier_for("out", memory)
        with _named("out"):
            rows = device_rows(tier.gpu, memory, stream)
        if rows is None:
            raise LimitError(f"out is a {_name(memory)} in host memory: give a NumPy array over it")
        return rows

    def new_rows(self, count: int, stream: int | None) -> DeviceRows:
        """New memory for pages, which belongs to a stream.

        Raises:
            DeviceError: there is none left.
            DeviceLostError: the GPU has failed.
        """
        gpu = self.tier().gpu
        owner = stream_of(gpu, stream)
        try:
            with gpu.on(owner):
                return DeviceRows(gpu.xp.empty((count, self._page_bytes), np.uint8), owner)
        except gpu.errors as error:
            raise DeviceError(f"the GPU has no memory for {count} pages: {error}") from error

    def ids(self, memory: object, stream: int | None) -> DeviceIds:
        """Memory as page ids, as ``stream`` will leave them; errors are those of :meth:`rows`.

        Raises:
            LimitError: also, if the memory is no u64[n].
        """
        tier = self._tier_for("page_ids", memory)
        with _named("page_ids"):
            array = tier.gpu.adopt(memory)
        if array is None:
            name = _name(memory)
            raise LimitError(f"page_ids is a {name} in host memory: give a NumPy array over it")
        check_page_ids(array)
        with device_calls(tier.gpu):
            owner = stream_of(tier.gpu, stream)
            return DeviceIds(array, owner.record(), owner)

    async def until_ready(self, page_ids: DeviceIds) -> None:
        """Let others go on until the GPU has written what is asked for.

        Nothing else here, nor of the tier, may be asked about page ids before.

        Raises:
            DeviceLostError: the GPU has failed.
        """
        with device_calls(self.tier().gpu):
            while not page_ids.ready.done:  # noqa: ASYNC110 -- a GPU sets no asyncio.Event
                await asyncio.sleep(0)

    def admitted(self, page_ids: DeviceIds, epoch: int, share: float) -> Bool | None:
        """As of :func:`kvtier.chain.admission.admitted`, on the GPU."""
        if share >= 1.0:
            return None
        choose = partial(admitted, epoch=epoch, rule=share)
        chosen: Bool = self.tier().index.apply(choose, page_ids)
        return chosen

    def copied(self, page_ids: DeviceIds) -> DeviceIds:
        """The same page ids, whatever becomes of the caller's memory."""
        copy = self.tier().index.apply(lambda array: array.copy(), page_ids)
        return DeviceIds(copy, page_ids.ready, page_ids.stream)

    def fetched(self, page_ids: DeviceIds) -> U64:
        """The page ids in host memory."""
        return self.tier().index.fetch(page_ids)

    def slots(self, page_ids: DeviceIds) -> I64:
        """The slot of each page in the tier, or -1 (i64[n]), on the GPU and its owner's stream."""
        slots: I64 = self.tier().slots(page_ids)
        return slots

    def _tier_for(self, what: str, memory: object) -> CudaTier:
        if self._tier is None:
            name = _name(memory)
            raise LimitError(f"{what} is a {name}, and no tier is on a GPU: give a NumPy array")
        if self._lost is not None:
            raise DeviceLostError(f"{self._lost}; give {what} in host memory")
        return self._tier


def check_page_ids(page_ids: Array) -> None:
    """Refuse what are no page ids, wherever they lie.

    Raises:
        LimitError: they are no u64[n].
    """
    if page_ids.dtype != np.uint64 or page_ids.ndim != 1:
        raise LimitError(
            f"page_ids is {page_ids.dtype}{list(page_ids.shape)}: it must be uint64[n]"
        )


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Within, a LimitError says which argument is meant."""
    try:
        yield
    except LimitError as error:
        raise LimitError(f"{what}: {error}") from error


def _name(memory: object) -> str:
    return f"{type(memory).__module__.partition('.')[0]}.{type(memory).__name__}"
