"""Before a replay: an origin that holds the trace's objects, with payload that can be checked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from kvtier.backend import Backend, ExtentBatch, ObjectBatch
from kvtier.errors import BackendError, SettingsError
from kvtier.pages import U8
from kvtier.pattern import check_pattern, fill_pattern, key_fingerprint
from kvtier.registry import open_backend
from kvtier.replay.payload import pattern_pages
from kvtier.settings import OriginSettings, Settings
from kvtier.trace import PageTrace, RequestTrace, TraceObject
from kvtier.units import format_bytes

_FILL_PAGES = 4096


def is_temporary(origin: OriginSettings | None) -> bool:
    """Files without a directory of their own."""
    return origin is not None and origin.backend == "file" and "root" not in origin.options


@asynccontextmanager
async def temporary_origin(settings: Settings, stored_bytes: int) -> AsyncIterator[Settings]:
    """``settings`` with its origin of files in a temporary directory, removed at the end.

    Raises:
        SettingsError: the directory has no room for ``stored_bytes``.
    """
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if stored_bytes > free:
        raise SettingsError(
            f"the run stores {format_bytes(stored_bytes)}, and {tempfile.gettempdir()} has "
            f"{format_bytes(free)} free: set TMPDIR, or configure an [origin] that has room"
        )
    assert settings.origin is not None
    with tempfile.TemporaryDirectory(prefix="kvtier-origin-") as root:
        # What is removed at the end need not outlive a crash.
        options = MappingProxyType({"sync": False, **settings.origin.options, "root": root})
        yield replace(settings, origin=replace(settings.origin, options=options))


@asynccontextmanager
async def prepared_origin(
    settings: Settings, trace: RequestTrace | PageTrace, notify: Callable[[str], None]
) -> AsyncIterator[Backend | None]:
    """The open origin, holding every object of a page trace."""
    async with AsyncExitStack() as stack:
        if settings.origin is None:
            yield None
            return
        named = settings.origin
        origin = await open_backend(named.backend, named.options, settings.page_bytes)
        stack.push_async_callback(origin.close)
        if isinstance(trace, PageTrace):
            await _store_objects(origin, trace, settings, notify)
        yield origin


async def _store_objects(
    origin: Backend, trace: PageTrace, settings: Settings, notify: Callable[[str], None]
) -> None:
    stats = await origin.stat([one.key for one in trace.objects])
    missing = []
    for one, pages, version in zip(
        trace.objects, stats.pages.tolist(), stats.versions.tolist(), strict=True
    ):
        if pages >= one.pages:
            if settings.replay.verify_share > 0:
                await _check_pattern(origin, one, version, settings.page_bytes)
        elif pages >= 0:
            raise SettingsError(
                f"the origin's object {one.key!r} has {pages} pages, the trace reads "
                f"{one.pages}: it is another object; use an empty origin"
            )
        else:
            missing.append(one)
    if missing and origin.capability.writable:
        size = format_bytes(sum(one.pages for one in missing) * settings.page_bytes)
        notify(f"storing {len(missing)} objects at the origin: {size}")
        await _store_missing(origin, missing, settings.page_bytes)


async def _store_missing(origin: Backend, missing: Sequence[TraceObject], page_bytes: int) -> None:
    """Put objects of pattern pages: small ones together, large ones each by itself."""
    batch: list[TraceObject] = []
    pages = 0
    for one in missing:
        if one.pages > _FILL_PAGES:
            await _store(origin, one, page_bytes)
            continue
        if pages + one.pages > _FILL_PAGES:
            await _store_batch(origin, batch, page_bytes)
            batch, pages = [], 0
        batch.append(one)
        pages += one.pages
    if batch:
        await _store_batch(origin, batch, page_bytes)


async def _store_batch(origin: Backend, batch: Sequence[TraceObject], page_bytes: int) -> None:
    keys = tuple(one.key for one in batch)
    counts = np.array([one.pages for one in batch], np.uint32)
    payload = pattern_pages(keys, counts.astype(np.int64), page_bytes)
    result = await origin.put(ObjectBatch(keys, counts, payload))
    refused = int(np.count_nonzero(result.status))
    if refused:
        raise BackendError(f"the origin refused {refused} of {len(batch)} objects")


async def _store(origin: Backend, one: TraceObject, page_bytes: int) -> None:
    """Put a large object; its pages are made in a file, for memory may not hold them."""
    with tempfile.TemporaryFile(prefix="kvtier-payload-") as file:
        payload: U8 = np.memmap(file, np.uint8, "w+", shape=(one.pages, page_bytes))
        fingerprint = key_fingerprint(one.key)
        for start in range(0, one.pages, _FILL_PAGES):
            rows = payload[start : start + _FILL_PAGES]
            pages = np.arange(start, start + len(rows), dtype=np.uint64)
            fill_pattern(rows, np.full(len(rows), fingerprint, np.uint64), pages)
        counts = np.array([one.pages], np.uint32)
        result = await origin.put(ObjectBatch((one.key,), counts, payload))
    if result.status[0]:
        raise BackendError(f"the origin refused object {one.key!r} of {one.pages} pages")


async def _check_pattern(origin: Backend, one: TraceObject, version: int, page_bytes: int) -> None:
    """An object that was there before must carry the pattern, or nothing could be verified."""
    zero = np.zeros(1, np.uint32)
    batch = ExtentBatch(
        (one.key,), np.array([version], np.uint64), zero, zero, np.ones(1, np.uint32), zero
    )
    page = np.empty((1, page_bytes), np.uint8)
    status = await origin.read(batch, page)
    fingerprint = np.array([key_fingerprint(one.key)], np.uint64)
    if status[0] or not check_pattern(page, None, fingerprint, np.zeros(1, np.uint64))[0]:
        raise SettingsError(
            f"the origin's object {one.key!r} was not stored by kvtier, so its bytes cannot be "
            "verified: set replay.verify_share = 0 to replay on it unverified"
        )
