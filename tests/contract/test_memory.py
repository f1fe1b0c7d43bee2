from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio
from kvtier_memory import MemoryBackend

from kvtier.backend import Backend
from kvtier.errors import SettingsError
from kvtier.pages import PageStatus
from kvtier.testing.batches import make_objects
from kvtier.testing.contract import BackendContract
from kvtier.testing.pages import make_pages


class TestMemoryBackend(BackendContract):
    @pytest_asyncio.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        backend = await MemoryBackend.open({}, self.page_bytes)
        yield backend
        await backend.close()


class TestCapacity:
    pytestmark = pytest.mark.asyncio

    async def test_a_put_beyond_the_capacity_fails_alone(self) -> None:
        backend = await MemoryBackend.open({"capacity_bytes": 4 * 512}, 512)
        objects = {b"a": make_pages(b"a", 0, 3, 512), b"b": make_pages(b"b", 0, 2, 512)}
        result = await backend.put(make_objects(objects, 512))
        assert result.status.tolist() == [PageStatus.OK, PageStatus.FAILED]
        assert (await backend.stat([b"a", b"b"])).pages.tolist() == [3, -1]

    async def test_deleted_and_rewritten_objects_give_their_room_back(self) -> None:
        backend = await MemoryBackend.open({"capacity_bytes": 4 * 512}, 512)
        for generation in range(3):
            pages = {b"a": make_pages(b"a", generation, 4, 512)}
            result = await backend.put(make_objects(pages, 512))
            assert result.status.tolist() == [PageStatus.OK]
        await backend.delete([b"a"])
        result = await backend.put(make_objects({b"b": make_pages(b"b", 0, 4, 512)}, 512))
        assert result.status.tolist() == [PageStatus.OK]

    async def test_a_capacity_below_one_page_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="capacity_bytes"):
            await MemoryBackend.open({"capacity_bytes": 511}, 512)

    async def test_versions_of_two_stores_have_nothing_in_common(self) -> None:
        stores = [await MemoryBackend.open({}, 512) for _ in range(2)]
        pages = make_objects({b"a": make_pages(b"a", 0, 1, 512)}, 512)
        results = [await store.put(pages) for store in stores]
        assert not np.array_equal(results[0].versions, results[1].versions)
