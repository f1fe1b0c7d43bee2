"""The Mooncake backend: batches of blocking calls, made from a few threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import numpy as np

from kvtier.backend import (
    Backend,
    Capability,
    ExtentBatch,
    ObjectBatch,
    ObjectStats,
    PutResult,
    check_extents,
    check_keys,
    check_objects,
    empty_status,
)
from kvtier.errors import BackendError, ClosedError
from kvtier.pages import U8, PageStatus, check_page_bytes
from kvtier_mooncake.codes import NOT_FOUND
from kvtier_mooncake.layout import Head, NamedHead, Names, chunk_names, new_version
from kvtier_mooncake.limits import RANGES_AT_ONCE
from kvtier_mooncake.link import Link
from kvtier_mooncake.listing import list_keys
from kvtier_mooncake.reading import ExtentReader
from kvtier_mooncake.settings import MooncakeSettings, parse_address, parse_settings
from kvtier_mooncake.stating import find_objects
from kvtier_mooncake.workers import Gate, Workers
from kvtier_mooncake.writing import cut_parts, put_part

T = TypeVar("T")


class MooncakeBackend(Backend):
    """Objects in a Mooncake Store, shared by all hosts that use the same master and namespace.

    Options:
        master: ``HOST:PORT`` of its master.
        metadata: where hosts find each other: ``P2PHANDSHAKE`` (directly; the default) or the URL
            of a metadata server.
        protocol: how pages travel; ``tcp`` by default.
        device: RDMA devices, separated by commas; found by Mooncake if not given.
        host: the address by which other hosts reach this one; if not given, the one it has
            towards the master.
        namespace: tells stores apart that share a Mooncake; ``kvtier`` by default.
        admin: ``HOST:PORT`` of the master's admin server, its ``--metrics_port``. Only that can
            list: without it, so cannot this backend.
        segment_bytes: memory that this process lends to the store; 0 by default.
        buffer_bytes: memory through which pages are read and written; 64 MiB by default.
        chunk_bytes: most bytes of one value; 4 MiB by default.
        threads: calls at once; 4 by default.
        replicas: how often each value is kept, on different hosts; 1 by default.
        connect_timeout_s: how long each step of opening may take; 10 by default.
        timeout_s: how long a call may take; 30 by default.

    Mooncake is a cache: it evicts what was not read for long, and what lies on a host that leaves
    is lost. An object that lost a part is not there.

    A cancelled call returns at once; its thread ends what it began, but leaves the memory of the
    caller alone.
    """

    def __init__(self, link: Link, settings: MooncakeSettings, page_bytes: int) -> None:
        self._link = link
        self._names = Names(settings.namespace, page_bytes)
        self._page_bytes = page_bytes
        self._slot_pages = settings.slot_bytes // page_bytes
        self._chunk_pages = min(settings.chunk_bytes // page_bytes, self._slot_pages)
        self._timeout_s = settings.timeout_s
        self._admin = parse_address(settings.admin, "admin") if settings.admin else None
        self._closing: asyncio.Task[None] | None = None
        self.capability = Capability(
            listable=self._admin is not None,
            # What lies in memory that this process lends is gone with it.
            persistent=settings.segment_bytes == 0,
            shared=True,
            remote=True,
            extent_pages_max=self._slot_pages,
        )

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> MooncakeBackend:
        check_page_bytes(page_bytes)
        settings = parse_settings(options, page_bytes)
        return cls(await Link.open(settings), settings, page_bytes)

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        self._check_open()
        check_keys(keys, self.capability)
        names = [self._names.head(key) for key in keys]
        link = self._link
        call = link.workers.submit(partial(find_objects, link.store, names))
        (found,) = await self._ended([call], Gate())
        return ObjectStats(
            pages=np.array([head.pages if head else -1 for head in found], np.int64),
            versions=np.array([head.version if head else 0 for head in found], np.uint64),
        )

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        self._check_open()
        check_extents(batch, out, self._page_bytes, self.capability)
        gate = Gate()
        reader = ExtentReader(self._link.store, self._names, batch, out, gate)
        shares = _shares(batch, self._slot_pages)
        calls = self._begin(self._link.workers, [partial(reader.read, one) for one in shares], gate)
        statuses = await self._ended(calls, gate)
        return np.concatenate([empty_status(0), *statuses])

    async def put(self, batch: ObjectBatch) -> PutResult:
        self._check_open()
        check_objects(batch, self._page_bytes, self.capability)
        objects = [
            (self._names.head(key), Head(new_version(), pages, self._chunk_pages))
            for key, pages in zip(batch.keys, batch.page_counts.tolist(), strict=True)
        ]
        whole = await self._put_chunks(objects, batch.payload)
        items = [item for item in range(len(batch)) if whole[item]]
        codes = await self._publish([objects[item] for item in items])
        result = PutResult(
            np.full(len(batch), PageStatus.FAILED, np.uint8), np.zeros(len(batch), np.uint64)
        )
        for item, code in zip(items, codes, strict=True):
            if code == 0:
                result.status[item] = PageStatus.OK
                result.versions[item] = objects[item][1].version
        return result

    async def delete(self, keys: Sequence[bytes]) -> U8:
        self._check_open()
        check_keys(keys, self.capability)
        names = [self._names.head(key) for key in keys]
        call = self._link.publishing.submit(partial(self._link.publisher.remove, names))
        (codes,) = await self._ended([call], Gate())
        status = {0: PageStatus.OK, NOT_FOUND: PageStatus.ABSENT}
        return np.array([status.get(code, PageStatus.FAILED) for code in codes], np.uint8)

    async def keys(self) -> AsyncIterator[bytes]:
        self._check_open()
        if self._admin is None:
            raise BackendError("to list a Mooncake Store, give the option 'admin'")
        host, port = self._admin
        listing = asyncio.to_thread(list_keys, host, port, self._names, self._timeout_s)
        try:
            listed = await asyncio.wait_for(listing, self._timeout_s)
        except TimeoutError as error:
            raise BackendError(
                f"the admin server at {host}:{port} gave no list of keys in {self._timeout_s} s"
            ) from error
        for key in listed:
            self._check_open()
            yield key

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._link.close())
        await asyncio.shield(self._closing)

    async def _put_chunks(self, objects: Sequence[NamedHead], payload: U8) -> list[bool]:
        """Put all chunks; whether all those of each object were. What is no use is discarded."""
        link, gate = self._link, Gate()
        parts = list(cut_parts(objects, self._slot_pages))
        puts = [partial(put_part, link, part, payload, gate) for part in parts]
        whole = [False] * len(objects)
        try:
            answers = await self._ended(self._begin(link.workers, puts, gate), gate)
            whole = [True] * len(objects)
            for part, codes in zip(parts, answers, strict=True):
                for item, code in zip(part.objects, codes, strict=True):
                    whole[item] = whole[item] and code == 0
        finally:
            self._discard(
                [one for one, is_whole in zip(objects, whole, strict=True) if not is_whole]
            )
        return whole

    async def _publish(self, objects: Sequence[NamedHead]) -> list[int]:
        """Publish objects whose chunks are put; a code for each, 0 where that worked."""
        call = self._link.publishing.submit(partial(self._link.publisher.publish, objects))
        try:
            (codes,) = await self._ended([call], Gate())
        finally:
            if call.cancelled():
                self._discard(objects)
        return codes

    def _discard(self, objects: Sequence[NamedHead]) -> None:
        for name, head in objects:
            self._link.publisher.discard(chunk_names(name, head))

    def _begin(
        self, workers: Workers, calls: Sequence[Callable[[U8], T]], gate: Gate
    ) -> list[Future[T]]:
        """Submit calls that use memory of the caller through ``gate``: all of them, or none."""
        begun: list[Future[T]] = []
        try:
            begun.extend(workers.submit(call) for call in calls)
        except ClosedError:
            gate.shut()
            for one in begun:
                one.cancel()
            raise
        return begun

    async def _ended(self, calls: Sequence[Future[T]], gate: Gate) -> list[T]:
        """What calls return, once all have; however this ends, none passes ``gate`` any more."""
        waiting = [asyncio.wrap_future(call) for call in calls]
        if not waiting:
            return []
        try:
            _, late = await asyncio.wait(waiting, timeout=self._timeout_s)
        finally:
            gate.shut()
            for call, one in zip(calls, waiting, strict=True):
                call.cancel()
                one.cancel()
        if late:
            raise BackendError(
                f"the Mooncake store did not answer within {self._timeout_s} s: "
                "are its master and its hosts still running?"
            )
        errors = [one.exception() for one in waiting]
        for error in errors:
            if error is not None:
                raise error
        return [one.result() for one in waiting]

    def _check_open(self) -> None:
        if self._closing is not None:
            raise ClosedError("this mooncake backend is closed: open another")


def _shares(batch: ExtentBatch, slot_pages: int) -> list[slice]:
    """Neighbouring extents, as many as fit into a slot and one call."""
    ends = np.cumsum(batch.page_count, dtype=np.int64)
    shares: list[slice] = []
    first = 0
    while first < len(ends):
        before = int(ends[first - 1]) if first else 0
        fitting = int(np.searchsorted(ends, before + slot_pages, side="right"))
        last = min(fitting, first + RANGES_AT_ONCE)
        shares.append(slice(first, last))
        first = last
    return shares
