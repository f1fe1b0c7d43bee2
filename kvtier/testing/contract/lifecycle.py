"""Opening and closing: what outlives it, and what is refused after it."""

from __future__ import annotations

import asyncio
from typing import Final

import numpy as np
import pytest

from kvtier.backend import Backend
from kvtier.errors import BackendError, ClosedError
from kvtier.testing.batches import make_extents, make_objects, read_objects
from kvtier.testing.contract.base import ContractBase, needs_listable

_CLOSE_S: Final = 30


class LifecycleContract(ContractBase):
    async def test_a_second_close_does_nothing(self, backend: Backend) -> None:
        await backend.close()
        await backend.close()

    async def test_every_call_after_close_is_refused(self, backend: Backend) -> None:
        await backend.close()
        out = np.empty((1, self.page_bytes), np.uint8)
        with pytest.raises(ClosedError):
            await backend.stat([b"a"])
        with pytest.raises(ClosedError):
            await backend.read(make_extents({b"a": 1}, [(b"a", 0, 1, 0)]), out)
        with pytest.raises(ClosedError):
            await backend.put(make_objects({b"a": self.make(b"a", 1)}, self.page_bytes))
        with pytest.raises(ClosedError):
            await backend.delete([b"a"])
        with pytest.raises(ClosedError):
            await anext(aiter(backend.keys()))

    async def test_a_listing_ends_with_the_backend(self, backend: Backend) -> None:
        needs_listable(backend)
        await self.publish(backend, {b"a": self.make(b"a", 1), b"b": self.make(b"b", 1)})
        listing = aiter(backend.keys())
        await anext(listing)
        await backend.close()
        with pytest.raises(ClosedError):
            await anext(listing)

    async def test_close_while_reads_are_in_flight_ends_them(self, backend: Backend) -> None:
        pages = self.make(b"a", min(2000, backend.capability.object_pages_max))
        versions = await self.publish(backend, {b"a": pages})
        count = min(len(pages), backend.capability.extent_pages_max)
        outs = [np.empty_like(pages) for _ in range(16)]
        batch = make_extents(versions, [(b"a", 0, count, 0)])
        reads = [asyncio.ensure_future(backend.read(batch, out)) for out in outs]
        await asyncio.sleep(0)
        async with asyncio.timeout(_CLOSE_S):
            await backend.close()
            results = await asyncio.gather(*reads, return_exceptions=True)
        for result, out in zip(results, outs, strict=True):
            if isinstance(result, BaseException):
                assert isinstance(result, ClosedError | BackendError)
            elif not result.any():
                np.testing.assert_array_equal(out[:count], pages[:count])

    async def test_objects_outlive_close_where_it_says_so(self, backend: Backend) -> None:
        if not backend.capability.persistent:
            pytest.skip("the backend is not persistent")
        objects = {b"a": self.make(b"a", 3), b"b": self.make(b"b", 1)}
        versions = await self.publish(backend, objects)
        await backend.close()
        again = await self.reopen(backend)
        try:
            stats = await again.stat(list(objects))
            found = await read_objects(again, list(objects), self.page_bytes)
        finally:
            await again.close()
        assert stats.versions.tolist() == list(versions.values())
        for key, pages in objects.items():
            np.testing.assert_array_equal(found[key], pages)
