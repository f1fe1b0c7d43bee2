"""A small cache whose nvme tier is kept in a file, for tests of what outlives it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from gated_backend import GatedBackend

from kvtier import Settings, TieredCache, open_cache
from kvtier.driver import AsyncDriver
from kvtier.settings import ChainSettings, OriginSettings, TierSettings
from kvtier.tiers import NvmeTier

PAGE = 512


def kept_settings(
    path: Path | None, *, slots: int = 256, objects_max: int = 64, origin: bool = False, **tier: Any
) -> Settings:
    """One nvme tier, with or without an origin behind it."""
    return Settings(
        page_bytes=PAGE,
        tiers=(
            TierSettings(
                "nvme", slots * PAGE, ways=8, path=path, engine="threads", queue_depth=4, **tier
            ),
        ),
        origin=OriginSettings("memory") if origin else None,
        chain=ChainSettings(
            batch_pages_max=256,
            inflight_pages_max=256,
            device_batch_pages=32,
            staging_bytes=8 * 32 * PAGE,
            objects_max=objects_max,
        ),
    )


def kept(
    path: Path | None, backend: GatedBackend | None = None, **more: Any
) -> AbstractAsyncContextManager[TieredCache[AsyncDriver]]:
    """The cache, opened."""
    settings = kept_settings(path, origin=backend is not None, **more)
    return open_cache(settings, origin=backend)


def nvme_of(cache: TieredCache[AsyncDriver]) -> NvmeTier:
    """Its tier."""
    (tier,) = cache.driver.tiers
    assert isinstance(tier, NvmeTier)
    return tier
