"""The cache: named objects, read page by page through every level.

``open_cache`` builds one from settings; it runs on any asyncio loop::

    async with open_cache(settings) as cache:
        opened = await cache.open([b"kv/block-17"])
        result = await cache.read(opened.page_ids())
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import numpy as np

from kvtier.backend import ObjectBatch, ObjectStats, PutResult
from kvtier.chain import Chain, Read
from kvtier.directory import ObjectDirectory, ObjectEntry
from kvtier.errors import BackendError, LimitError
from kvtier.measure import Measurements
from kvtier.pages import I64, U8, U32, U64, Bool, PageStatus, expand_objects
from kvtier.settings import Settings

logger = logging.getLogger(__name__)

LEASE_OVERDUE_S: Final = 30.0
"""A lease held longer is reported; its slots stay quarantined."""


class Driver(Protocol):
    """Who performs the chain's actions: on real devices, or in virtual time."""

    @property
    def chain(self) -> Chain: ...

    @property
    def measurements(self) -> Measurements: ...

    def rows(self, count: int) -> U8 | None: ...

    async def read(self, page_ids: U64, out: U8 | None, deadline_s: float | None = None) -> U8: ...

    async def prefetch(self, page_ids: U64) -> U8: ...

    async def hold(self, page_ids: U64) -> tuple[Read, I64]: ...

    async def write(self, page_ids: U64, objects: int, payload: U8 | None) -> None: ...

    def invalidate(self, page_ids: U64) -> None: ...

    def resident(self, page_ids: U64) -> Bool: ...

    async def drain(self) -> None: ...

    async def close(self) -> None: ...


DriverT = TypeVar("DriverT", bound=Driver)


class Catalogue(Protocol):
    """What the cache asks of an origin; a :class:`kvtier.backend.Backend` is one."""

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats: ...

    async def put(self, batch: ObjectBatch) -> PutResult: ...

    async def delete(self, keys: Sequence[bytes]) -> U8: ...


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
        pages: u8[n, page_bytes]; rows that are not OK hold nothing of use.
    """

    status: U8
    pages: U8

    @property
    def ok(self) -> bool:
        """Every page was read."""
        return not self.status.any()


class Lease:
    """Pages of the first tier that stay where they are until :meth:`release`.

    Attributes:
        slots: i64[n], the slot of each page in the first tier, -1 where it is not there
            (bypassed, not admitted, absent or failed).
    """

    def __init__(self, chain: Chain, read: Read, slots: I64) -> None:
        self.slots = slots
        self._chain = chain
        self._read = read
        self._alarm = asyncio.get_running_loop().call_later(LEASE_OVERDUE_S, self._report)

    def release(self) -> None:
        """Let the slots be reused; a second call does nothing."""
        self._alarm.cancel()
        self._chain.release(self._read)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _report(self) -> None:
        logger.warning(
            "a lease of %d pages is overdue after %g s: its slots cannot be reused until released",
            len(self.slots),
            LEASE_OVERDUE_S,
        )


class TieredCache(Generic[DriverT]):
    """A multilevel read-through cache of named objects; all calls are batched.

    Use :func:`kvtier.open_cache`. Calls may run concurrently on one event loop.

    Args:
        driver: performs the chain's actions.
        directory: shared with the driver.
        origin: what is behind the driver's last level, or None.
        settings: bounds and write rules.
    """

    def __init__(
        self,
        driver: DriverT,
        directory: ObjectDirectory,
        origin: Catalogue | None,
        settings: Settings,
    ) -> None:
        self._driver = driver
        self._directory = directory
        self._origin = origin
        self._settings = settings
        self._batch_pages_max = settings.chain.batch_pages_max

    @property
    def driver(self) -> DriverT:
        """For counters, measurements and tiers."""
        return self._driver

    @property
    def directory(self) -> ObjectDirectory:
        """For the names of PageIds."""
        return self._directory

    # -- objects ------------------------------------------------------------------------------

    async def open(self, keys: Sequence[bytes]) -> OpenedObjects:
        """Find objects: in the directory, then at the origin.

        Raises:
            BackendError: the origin cannot say.
            LimitError: more distinct keys than the directory can remember.
        """
        await self._stat_unknown(keys)
        entries = self._directory.find(keys)
        return OpenedObjects(
            np.array([0 if entry is None else entry.object_id for entry in entries], np.uint32),
            np.array([-1 if entry is None else entry.pages for entry in entries], np.int64),
        )

    async def available(self, keys: Sequence[bytes]) -> Bool:
        """Which objects can be read now, whole (bool[k]): the origin has them, or the tiers do."""
        await self._stat_unknown(keys)
        entries = self._directory.find(keys)
        available = np.array([entry is not None for entry in entries], np.bool_)
        cached = [row for row, entry in enumerate(entries) if entry and not entry.at_origin]
        if cached:
            counts = np.array([entry.pages for entry in entries if entry and not entry.at_origin])
            ids = [entry.object_id for entry in entries if entry and not entry.at_origin]
            resident = self._driver.resident(expand_objects(np.array(ids, np.uint32), counts))
            whole = np.logical_and.reduceat(resident, np.cumsum(counts) - counts)
            available[cached] = whole
        return available

    async def lookup(self, keys: Sequence[bytes]) -> int:
        """Length of the leading run of keys whose objects can be read now, whole."""
        available = await self.available(keys)
        return len(keys) if available.all() else int(np.argmin(available))

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
            BackendError: the origin cannot be reached; nothing was published.
        """
        counts = np.asarray(page_counts, np.int64)
        self._check_write(keys, counts, payload)
        status = np.empty(len(keys), np.uint8)
        ends = np.cumsum(counts)
        start = 0
        while start < len(keys):
            first_row = int(ends[start] - counts[start])
            limit = first_row + self._batch_pages_max
            end = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
            rows = None if payload is None else payload[first_row : int(ends[end - 1])]
            part = slice(start, end)
            status[part] = await self._write_batch(tuple(keys[part]), counts[part], rows)
            start = end
        return status

    async def delete(self, keys: Sequence[bytes]) -> None:
        """Forget objects everywhere, at the origin too if it is written through.

        Raises:
            BackendError: the origin could not delete all of them; the tiers have forgotten them.
        """
        self._retire(self._directory.remove(keys))
        if self._writes_origin() and self._origin is not None:
            status = await self._origin.delete(keys)
            failed = int(np.count_nonzero(status == PageStatus.FAILED))
            if failed:
                raise BackendError(f"the origin could not delete {failed} of {len(keys)} objects")

    def forget(self, entries: Sequence[ObjectEntry]) -> None:
        """Let go of versions that the origin no longer has; the next ``open`` asks it anew."""
        for entry in entries:
            if self._directory.by_id(entry.object_id) is entry:
                self._retire(self._directory.remove([entry.key]))

    # -- pages --------------------------------------------------------------------------------

    async def read(
        self, page_ids: U64, out: U8 | None = None, *, deadline_s: float | None = None
    ) -> ReadResult:
        """Read pages through the levels.

        Args:
            page_ids: u64[n], repeats allowed.
            out: u8[n, page_bytes], C-contiguous; allocated if None. Never touched after the
                return, nor after a cancellation.
            deadline_s: pages not there by then are answered LATE.
        """
        page_ids = _checked_ids(page_ids)
        rows = self._driver.rows(len(page_ids)) if out is None else self._checked_out(page_ids, out)
        status = await self.read_into(page_ids, rows, deadline_s)
        assert rows is not None
        return ReadResult(status, rows)

    async def read_into(
        self, page_ids: U64, rows: U8 | None, deadline_s: float | None = None
    ) -> U8:
        """``read`` without its checks; rows of None are for a driver that moves no bytes."""
        size = self._batch_pages_max
        if len(page_ids) <= size:
            return await self._driver.read(page_ids, rows, deadline_s)
        status = np.empty(len(page_ids), np.uint8)
        for start in range(0, len(page_ids), size):
            part = slice(start, start + size)
            part_rows = None if rows is None else rows[part]
            status[part] = await self._driver.read(page_ids[part], part_rows, deadline_s)
        return status

    async def prefetch(self, page_ids: U64) -> U8:
        """Fill the tiers with pages, without copying them; returns their status (u8[n])."""
        page_ids = _checked_ids(page_ids)
        size = self._batch_pages_max
        status = np.empty(len(page_ids), np.uint8)
        for start in range(0, len(page_ids), size):
            part = slice(start, start + size)
            status[part] = await self._driver.prefetch(page_ids[part])
        return status

    async def lease(self, page_ids: U64) -> Lease:
        """Bring pages into the first tier and keep them there, to be used in place.

        Raises:
            LimitError: too many pages, or the first level is no tier in memory.
        """
        page_ids = _checked_ids(page_ids)
        if not self._settings.tiers or self._settings.tiers[0].name == "nvme":
            raise LimitError("a lease needs a first tier in memory (hbm or dram)")
        if len(page_ids) > self._batch_pages_max:
            raise LimitError(
                f"a lease of {len(page_ids)} pages: at most batch_pages_max = "
                f"{self._batch_pages_max} can be held at once"
            )
        read, slots = await self._driver.hold(page_ids)
        return Lease(self._driver.chain, read, slots)

    async def drain(self) -> None:
        """Wait until every read is answered and every fill has ended."""
        await self._driver.drain()

    # -- inside -------------------------------------------------------------------------------

    async def _stat_unknown(self, keys: Sequence[bytes]) -> None:
        if self._origin is None:
            return
        unknown = [key for key in dict.fromkeys(keys) if not self._directory.knows(key)]
        if not unknown:
            return
        objects_max = self._settings.chain.objects_max
        if len(unknown) > objects_max:
            raise LimitError(f"{len(unknown)} new keys at once: objects_max is {objects_max}")
        stats = await self._origin.stat(unknown)
        for key, pages, version in zip(
            unknown, stats.pages.tolist(), stats.versions.tolist(), strict=True
        ):
            # Another task may have opened or written the key while this one waited.
            if pages > 0 and not self._directory.knows(key):
                self._publish(self._directory.reserve(key, pages, version, at_origin=True))

    def _writes_origin(self) -> bool:
        return self._settings.origin is not None and self._settings.origin.write == "through"

    async def _write_batch(self, keys: tuple[bytes, ...], counts: I64, payload: U8 | None) -> U8:
        status = np.zeros(len(keys), np.uint8)
        versions = np.zeros(len(keys), np.uint64)
        at_origin = self._writes_origin()
        if self._origin is not None and at_origin:
            rows = np.empty((0, 0), np.uint8) if payload is None else payload
            result = await self._origin.put(ObjectBatch(keys, counts.astype(np.uint32), rows))
            status, versions = result.status, result.versions
        entries = [
            self._directory.reserve(key, pages, version, at_origin=at_origin)
            for key, pages, version, one in zip(
                keys, counts.tolist(), versions.tolist(), status.tolist(), strict=True
            )
            if one == PageStatus.OK
        ]
        try:
            await self._fill_tiers(entries, status == PageStatus.OK, counts, payload)
        finally:
            # Also when cancelled: the origin has the objects, and every fill has ended.
            for entry in entries:
                self._publish(entry)
        return status

    async def _fill_tiers(
        self, entries: Sequence[ObjectEntry], chosen: Bool, counts: I64, payload: U8 | None
    ) -> None:
        ids = np.array([entry.object_id for entry in entries], np.uint32)
        page_ids = expand_objects(ids, counts[chosen])
        if payload is not None and not chosen.all():
            payload = payload[np.repeat(chosen, counts)]
        objects, size = len(entries), self._batch_pages_max
        for start in range(0, len(page_ids), size):
            part = slice(start, start + size)
            part_payload = None if payload is None else payload[part]
            await self._driver.write(page_ids[part], objects, part_payload)
            objects = 0

    def _publish(self, entry: ObjectEntry) -> None:
        self._retire(self._directory.publish(entry))

    def _retire(self, entries: Sequence[ObjectEntry]) -> None:
        for entry in entries:
            self._driver.invalidate(entry.page_ids())

    def _check_write(self, keys: Sequence[bytes], counts: I64, payload: U8 | None) -> None:
        if len(set(keys)) != len(keys) or len(counts) != len(keys):
            raise LimitError("write: keys must be distinct, with a page count for each")
        if len(counts) and int(counts.min()) < 1:
            raise LimitError("write: an object has at least 1 page")
        expected = (int(counts.sum()), self._settings.page_bytes)
        if payload is not None and (payload.shape != expected or payload.dtype != np.uint8):
            raise LimitError(
                f"write: payload is {payload.dtype}{list(payload.shape)}: "
                f"it must be uint8{list(expected)}"
            )

    def _checked_out(self, page_ids: U64, out: U8) -> U8:
        expected = (len(page_ids), self._settings.page_bytes)
        if (
            out.dtype != np.uint8
            or out.shape != expected
            or not out.flags.c_contiguous
            or not out.flags.writeable
        ):
            raise LimitError(
                f"read: out is {out.dtype}{list(out.shape)}: it must be a writable, C-contiguous "
                f"uint8{list(expected)}"
            )
        return out


def _checked_ids(page_ids: U64) -> U64:
    if page_ids.dtype != np.uint64 or page_ids.ndim != 1:
        raise LimitError(
            f"page_ids is {page_ids.dtype}{list(page_ids.shape)}: it must be uint64[n]"
        )
    return page_ids
