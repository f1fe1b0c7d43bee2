"""What a type checker knows of the public interface; `make check` reads this, nothing runs it."""

from __future__ import annotations

from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from kvtier import (
    Lease,
    OpenedObjects,
    ReadResult,
    Settings,
    TieredCache,
    load_settings,
    open_cache,
)
from kvtier.backend import Backend
from kvtier.driver import AsyncDriver
from kvtier.registry import open_backend


async def embed() -> None:
    settings = load_settings(None)
    assert_type(settings, Settings)
    async with open_cache(settings) as cache:
        assert_type(cache, TieredCache[AsyncDriver])
        opened = await cache.open([b"key"])
        assert_type(opened, OpenedObjects)
        assert_type(opened.page_ids(), NDArray[np.uint64])
        result = await cache.read(opened.page_ids(), deadline_s=0.1)
        assert_type(result, ReadResult)
        assert_type(result.pages, NDArray[np.uint8])
        assert_type(result.ok, bool)
        assert_type(await cache.lookup([b"key"]), int)
        with await cache.lease(opened.page_ids()) as lease:
            assert_type(lease, Lease)
            assert_type(lease.slots, NDArray[np.int64])


async def plug_in() -> None:
    assert_type(await open_backend("memory", {}, 4096), Backend)
