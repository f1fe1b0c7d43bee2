"""The cache: named objects, read page by page through every level.

``open_cache`` builds one from settings; it runs on any asyncio loop::

    async with open_cache(settings) as cache:
        opened = await cache.open([b"kv/block-17"])
        result = await cache.read(opened.page_ids())
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import numpy as np

from kvtier.answers import Parts
from kvtier.arguments import check_rows, checked_counts, checked_keys
from kvtier.catalogue import Catalogue, ObjectStore
from kvtier.chain import Chain, Read
from kvtier.directory import ObjectDirectory
from kvtier.errors import BackendError, LimitError
from kvtier.gpu import Array, DeviceIds, DeviceRows, PageIds, Rows
from kvtier.gpu_memory import GpuMemory, check_page_ids
from kvtier.lease import Lease
from kvtier.measure import Measurements
from kvtier.pages import I64, U8, U32, U64, Bool, PageStatus, Purpose, expand_objects
from kvtier.publishing import Publishing, Remember
from kvtier.settings import Settings


class Driver(Protocol):
    """Who performs the chain's actions: on real devices, or in virtual time."""

    @property
    def chain(self) -> Chain: ...

    @property
    def gpu_memory(self) -> GpuMemory: ...

    @property
    def measurements(self) -> Mapping[Purpose, Measurements]: ...

    def rows(self, count: int) -> U8 | None: ...

    async def read(
        self,
        page_ids: PageIds,
        out: Rows | None,
        deadline_s: float | None = None,
        purpose: Purpose = Purpose.UNSTATED,
    ) -> U8: ...

    async def prepare(self, requests: int) -> None: ...

    async def submit(
        self,
        page_ids: U64,
        out: U8 | None,
        parts: Parts,
        purpose: Purpose = Purpose.UNSTATED,
    ) -> Read: ...

    async def prefetch(self, page_ids: PageIds) -> U8: ...

    async def hold(self, page_ids: PageIds) -> tuple[Read, I64]: ...

    async def write(self, page_ids: U64, objects: int, payload: U8 | None) -> None: ...

    def call_at(self, t_ns: int, call: Callable[[], None]) -> None: ...

    def invalidate(self, page_ids: U64) -> None: ...

    def resident(self, page_ids: U64) -> Bool: ...

    def check(self) -> None: ...

    async def drain(self) -> None: ...

    async def close(self) -> None: ...


DriverT = TypeVar("DriverT", bound=Driver)

_PURPOSES: Final = frozenset(Purpose)


@dataclass(frozen=True, slots=True, eq=False)
class OpenedObjects:
    """What ``open`` found, per key.

    Attributes:
        object_ids: u32[k], the high half of the PageIds; 0 where there is no object.
        pages: i64[k], -1 where there is no object.
    """

    object_ids: U32
    pages: I64

    def page_ids(self) -> U64:
        """PageIds of every page of every object found, object after object."""
        found = self.pages > 0
        return expand_objects(self.object_ids[found], self.pages[found])


@dataclass(frozen=True, slots=True, eq=False)
class ReadResult:
    """What ``read`` brought.

    Attributes:
        status: u8[n], a :class:`PageStatus` per page.
        pages: u8[n, page_bytes]; rows that are not OK hold nothing of use. It is ``out``, whatever
            its kind, if that was given.
    """

    status: U8
    pages: U8

    @property
    def ok(self) -> bool:
        """Every page was read."""
        return not self.status.any()


class TieredCache(Generic[DriverT]):
    """A multilevel read-through cache of named objects; all calls are batched.

    Use :func:`kvtier.open_cache`. Calls may run concurrently on one event loop.

    Args:
        driver: performs the chain's actions.
        directory: shared with the driver.
        origin: what is behind the driver's last level, or None.
        settings: bounds and write rules.
        remember: has no restart bring back keys (fingerprint and version) that were retired.
    """

    def __init__(
        self,
        driver: DriverT,
        directory: ObjectDirectory,
        origin: ObjectStore | None,
        settings: Settings,
        remember: Remember | None = None,
    ) -> None:
        self._driver = driver
        self._catalogue = Catalogue(directory, origin, driver.invalidate)
        self._settings = settings
        self._batch_pages_max = settings.chain.batch_pages_max
        self._publishing = Publishing(self._catalogue, driver.write, settings, remember)

    @property
    def driver(self) -> DriverT:
        """For counters, measurements and tiers."""
        return self._driver

    @property
    def settings(self) -> Settings:
        """As it was opened."""
        return self._settings

    @property
    def catalogue(self) -> Catalogue:
        """For the names of PageIds."""
        return self._catalogue

    # -- objects ------------------------------------------------------------------------------

    async def open(self, keys: Sequence[bytes]) -> OpenedObjects:
        """Find objects: in the directory, then at the origin.

        Raises:
            BackendError: the origin cannot say.
            LimitError: a key is not ``bytes``, or there are more than the directory can remember.
        """
        self._driver.check()
        entries = await self._catalogue.find(checked_keys(keys))
        return OpenedObjects(
            np.array([0 if entry is None else entry.object_id for entry in entries], np.uint32),
            np.array([-1 if entry is None else entry.pages for entry in entries], np.int64),
        )

    async def available(self, keys: Sequence[bytes]) -> Bool:
        """Which objects can be read now, whole (bool[k]): the origin has them, or the tiers do."""
        self._driver.check()
        entries = await self._catalogue.find(checked_keys(keys))
        available = np.array([entry is not None for entry in entries], np.bool_)
        cached = [row for row, entry in enumerate(entries) if entry and not entry.at_origin]
        if cached:
            kept = [entry for entry in entries if entry and not entry.at_origin]
            counts = np.array([entry.pages for entry in kept])
            ids = np.array([entry.object_id for entry in kept], np.uint32)
            resident = self._driver.resident(expand_objects(ids, counts))
            available[cached] = np.logical_and.reduceat(resident, np.cumsum(counts) - counts)
        return available

    async def lookup(self, keys: Sequence[bytes]) -> int:
        """Length of the leading run of keys whose objects can be read now, whole."""
        available = await self.available(keys)
        return len(available) if available.all() else int(np.argmin(available))

    async def write(
        self, keys: Sequence[bytes], page_counts: Sequence[int] | I64, payload: U8 | None
    ) -> U8:
        """Publish whole objects: at the origin, if it is written through, then in the tiers.

        Args:
            keys: k distinct keys; a known one gets a new version.
            page_counts: pages of each, at least 1.
            payload: u8[sum(page_counts), page_bytes], object after object (None only in virtual
                time, where no bytes move).

        Returns:
            u8[k], OK, or FAILED where the origin refused; that object keeps its old version.

        Raises:
            LimitError: ``keys``, ``page_counts`` and ``payload`` do not fit together.
            BackendError: the origin cannot be reached. What went there before the failure stays
                published; the objects of the failed call are looked up anew when next opened.
            DeviceError: it could not be written down that a key has a new version, so a restart
                may bring the old one back.
        """
        self._driver.check()
        counts = checked_counts(page_counts)
        return await self._publishing.write(checked_keys(keys), counts, payload)

    async def delete(self, keys: Sequence[bytes]) -> None:
        """Forget objects everywhere, at the origin too if it is written through.

        Raises:
            BackendError: the origin could not delete all of them; the tiers have forgotten them.
            DeviceError: it could not be written down that they were deleted, so a restart may
                bring them back.
        """
        self._driver.check()
        named = checked_keys(keys)
        status = await self._publishing.delete(named)
        failed = int(np.count_nonzero(status == PageStatus.FAILED))
        if failed:
            raise BackendError(f"the origin could not delete {failed} of {len(named)} objects")

    # -- pages --------------------------------------------------------------------------------

    async def read(
        self,
        page_ids: Array,
        out: Array | None = None,
        *,
        deadline_s: float | None = None,
        purpose: Purpose = Purpose.UNSTATED,
        stream: int | None = None,
    ) -> ReadResult:
        """Read pages through the levels.

        Args:
            page_ids: u64[n], repeats allowed. Where the first tier is on a GPU, memory of that is
                taken as well, with ``__cuda_array_interface__`` or DLPack (CuPy, PyTorch), as it
                is in the order of ``stream``; those that hit stay there. It may be written again
                after the return.
            out: u8[n, page_bytes], C-contiguous; allocated if None, where ``page_ids`` are. Never
                touched after the return, nor after a cancellation. Memory of the GPU is taken as
                well, from an address that is a multiple of 16. Its OK pages are enqueued, in the
                order of ``stream``, and the host does not wait for them; a page that was lost with
                the GPU is FAILED.
            deadline_s: pages not there by then are answered LATE.
            purpose: what the pages are for; counters and latencies are kept apart by it.
            stream: the ``cudaStream_t`` on which the owner of ``page_ids`` and ``out`` uses them.
                None: CuPy's current one at the call, which is, as PyTorch's, the default stream
                unless it was changed.

        Raises:
            LimitError: ``page_ids``, ``out`` or ``purpose`` is none.
            DeviceLostError: ``page_ids`` or ``out`` lies on a GPU that has failed.
            DeviceError: the GPU has no memory left for the pages.
        """
        ids = self._checked_ids(page_ids, stream)
        if purpose not in _PURPOSES:
            raise LimitError(f"read: purpose is {purpose!r}: give a kvtier.Purpose")
        memory: Array = out
        rows: Rows | None
        if out is not None:
            rows = self._checked_out(ids, out, stream)
        elif isinstance(ids, DeviceIds):
            rows = self._driver.gpu_memory.new_rows(len(ids), stream)
            memory = rows.array
        else:
            rows = memory = self._driver.rows(len(ids))
        status = await self.read_into(ids, rows, deadline_s, purpose)
        return ReadResult(status, memory)

    async def read_into(
        self,
        page_ids: PageIds,
        rows: Rows | None,
        deadline_s: float | None = None,
        purpose: Purpose = Purpose.UNSTATED,
    ) -> U8:
        """``read`` without its checks; rows of None are for a driver that moves no bytes."""
        size = self._batch_pages_max
        if len(page_ids) <= size:
            return await self._driver.read(page_ids, rows, deadline_s, purpose)
        loop = asyncio.get_running_loop()
        end = None if deadline_s is None else loop.time() + deadline_s
        status = np.empty(len(page_ids), np.uint8)
        for start in range(0, len(page_ids), size):
            part = slice(start, start + size)
            part_rows = None if rows is None else rows[part]
            left = None if end is None else max(0.0, end - loop.time())
            status[part] = await self._driver.read(page_ids[part], part_rows, left, purpose)
        return status

    async def prefetch(self, page_ids: Array, *, stream: int | None = None) -> U8:
        """Fill the tiers with pages, without copying them; returns their status (u8[n]).

        Arguments and errors are those of :meth:`read`.
        """
        ids = self._checked_ids(page_ids, stream)
        size = self._batch_pages_max
        status = np.empty(len(ids), np.uint8)
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            status[part] = await self._driver.prefetch(ids[part])
        return status

    async def lease(self, page_ids: Array, *, stream: int | None = None) -> Lease:
        """Bring pages into the first tier and keep them there, to be used in place.

        Arguments and errors are those of :meth:`read`.

        Raises:
            LimitError: also, if there are too many, or the first level is no tier in memory.
        """
        ids = self._checked_ids(page_ids, stream)
        if not self._settings.tiers or self._settings.tiers[0].name == "nvme":
            raise LimitError("a lease needs a first tier in memory (hbm or dram)")
        if len(ids) > self._batch_pages_max:
            raise LimitError(
                f"a lease of {len(ids)} pages: at most batch_pages_max = "
                f"{self._batch_pages_max} can be held at once"
            )
        read, slots = await self._driver.hold(ids)
        return Lease(self._driver.chain, read, slots)

    async def drain(self) -> None:
        """Wait until every read is answered and every fill has ended."""
        await self._driver.drain()

    # -- inside -------------------------------------------------------------------------------

    def _checked_ids(self, page_ids: Array, stream: int | None) -> PageIds:
        if not isinstance(page_ids, np.ndarray):
            return self._driver.gpu_memory.ids(page_ids, stream)
        check_page_ids(page_ids)
        return page_ids

    def _checked_out(self, page_ids: PageIds, out: Array, stream: int | None) -> Rows:
        on_host = isinstance(out, np.ndarray)
        rows: Rows = out if on_host else self._driver.gpu_memory.rows(out, stream)
        memory = rows.array if isinstance(rows, DeviceRows) else rows
        expected = (len(page_ids), self._settings.page_bytes)
        check_rows("read: out", memory, expected, written=True)
        return rows
