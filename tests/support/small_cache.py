"""A small cache over a gated memory origin, for tests."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import numpy as np
from gated_backend import GatedBackend

from kvtier import Settings, TieredCache, open_cache
from kvtier.driver import AsyncDriver
from kvtier.pages import U8, U64
from kvtier.replay.payload import pattern_pages
from kvtier.settings import ChainSettings, OriginSettings, TierSettings

PAGE = 512


def settings(
    tiers: str = "hbm dram nvme",
    *,
    slots: int = 64,
    chain: ChainSettings | None = None,
    origin: OriginSettings | None = None,
) -> Settings:
    sizes = dict(zip(("hbm", "dram", "nvme"), (slots, 2 * slots, 4 * slots), strict=True))
    return Settings(
        page_bytes=PAGE,
        device="cpu",
        tiers=tuple(
            TierSettings(name, capacity_bytes=sizes[name] * PAGE, ways=8, extent_pages_max=4)  # type: ignore[arg-type]
            for name in tiers.split()
        ),
        origin=origin or OriginSettings("memory", extent_pages_max=4),
        chain=chain
        or ChainSettings(
            batch_pages_max=256,
            inflight_pages_max=256,
            device_batch_pages=8,
            staging_bytes=16 * 8 * PAGE,
            objects_max=64,
        ),
    )


def opened(
    backend: GatedBackend | None, wanted: Settings | None = None
) -> AbstractAsyncContextManager[TieredCache[AsyncDriver]]:
    wanted = wanted or settings()
    if backend is None:
        wanted = replace(wanted, origin=None)
    return open_cache(wanted, origin=backend)


def payload(key: bytes, pages: int) -> U8:
    return pattern_pages([key], np.array([pages]), PAGE)


async def store(cache: TieredCache[AsyncDriver], key: bytes, pages: int) -> U64:
    assert (await cache.write([key], [pages], payload(key, pages))).tolist() == [0]
    return (await cache.open([key])).page_ids()


async def forget_tiers(cache: TieredCache[AsyncDriver], page_ids: U64) -> None:
    cache.driver.invalidate(page_ids)
