"""Writing: whole objects are published, rewritten, listed and deleted."""

from __future__ import annotations

import numpy as np

from kvtier.backend import Backend
from kvtier.pages import PageStatus
from kvtier.testing.batches import list_keys, make_extents, make_objects, put_objects, read_objects
from kvtier.testing.contract.base import ContractBase, needs_listable, needs_writable


class WritingContract(ContractBase):
    async def test_put_tells_status_and_version(self, backend: Backend) -> None:
        needs_writable(backend)
        objects = {b"a": self.make(b"a", 1), b"b": self.make(b"b", 3)}
        result = await backend.put(make_objects(objects, self.page_bytes))
        stats = await backend.stat(list(objects))
        assert result.status.dtype == np.uint8
        assert result.status.tolist() == [PageStatus.OK] * 2
        assert result.versions.dtype == np.uint64
        assert result.versions.tolist() == stats.versions.tolist()

    async def test_put_stores_exactly_the_pages(self, backend: Backend) -> None:
        needs_writable(backend)
        pages = self.make(b"a", 3)
        await put_objects(backend, {b"a": pages}, self.page_bytes)
        np.testing.assert_array_equal(await self.raw_get(backend, b"a"), pages)

    async def test_put_of_nothing_does_nothing(self, backend: Backend) -> None:
        needs_writable(backend)
        result = await backend.put(make_objects({}, self.page_bytes))
        assert result.status.shape == result.versions.shape == (0,)

    async def test_put_keeps_no_hold_of_the_payload(self, backend: Backend) -> None:
        needs_writable(backend)
        pages = self.make(b"a", 4)
        batch = make_objects({b"a": pages}, self.page_bytes)
        await backend.put(batch)
        batch.payload[:] = 0
        found = await read_objects(backend, [b"a"], self.page_bytes)
        np.testing.assert_array_equal(found[b"a"], pages)

    async def test_many_objects_go_in_one_put(self, backend: Backend) -> None:
        needs_writable(backend)
        objects = {b"%d" % index: self.make(b"%d" % index, 1 + index % 5) for index in range(300)}
        await put_objects(backend, objects, self.page_bytes)
        found = await read_objects(backend, list(objects), self.page_bytes)
        for key, pages in objects.items():
            np.testing.assert_array_equal(found[key], pages)

    async def test_a_rewritten_key_has_another_version(self, backend: Backend) -> None:
        needs_writable(backend)
        seen = set()
        for generation in range(10):
            pages = self.make(b"a", 2, generation)
            seen.add((await put_objects(backend, {b"a": pages}, self.page_bytes))[b"a"])
        assert len(seen) == 10

    async def test_a_key_rewritten_with_the_same_bytes_has_another_version(
        self, backend: Backend
    ) -> None:
        needs_writable(backend)
        objects = {b"a": self.make(b"a", 1)}
        first = await put_objects(backend, objects, self.page_bytes)
        assert first != await put_objects(backend, objects, self.page_bytes)

    async def test_a_version_does_not_come_back_after_a_delete(self, backend: Backend) -> None:
        needs_writable(backend)
        objects = {b"a": self.make(b"a", 1)}
        seen = set()
        for _ in range(5):
            seen.add((await put_objects(backend, objects, self.page_bytes))[b"a"])
            await backend.delete([b"a"])
        assert len(seen) == 5

    async def test_the_old_version_of_a_rewritten_key_is_absent(self, backend: Backend) -> None:
        needs_writable(backend)
        old = await put_objects(backend, {b"a": self.make(b"a", 2, 1)}, self.page_bytes)
        new = await put_objects(backend, {b"a": self.make(b"a", 2, 2)}, self.page_bytes)
        out = np.empty((2, self.page_bytes), np.uint8)
        assert await backend.read(make_extents(old, [(b"a", 0, 2, 0)]), out) == PageStatus.ABSENT
        assert await backend.read(make_extents(new, [(b"a", 0, 2, 0)]), out) == PageStatus.OK
        np.testing.assert_array_equal(out, self.make(b"a", 2, 2))

    async def test_a_rewritten_key_may_shrink_and_grow(self, backend: Backend) -> None:
        needs_writable(backend)
        for generation, count in enumerate((4, 1, 9)):
            pages = self.make(b"a", count, generation)
            await put_objects(backend, {b"a": pages}, self.page_bytes)
            found = await read_objects(backend, [b"a"], self.page_bytes)
            np.testing.assert_array_equal(found[b"a"], pages)

    async def test_delete_tells_what_was_there(self, backend: Backend) -> None:
        needs_writable(backend)
        await put_objects(backend, {b"a": self.make(b"a", 1)}, self.page_bytes)
        status = await backend.delete([b"none", b"a"])
        assert status.dtype == np.uint8
        assert status.tolist() == [PageStatus.ABSENT, PageStatus.OK]

    async def test_a_deleted_object_is_gone(self, backend: Backend) -> None:
        needs_writable(backend)
        objects = {b"a": self.make(b"a", 1), b"b": self.make(b"b", 1)}
        versions = await put_objects(backend, objects, self.page_bytes)
        await backend.delete([b"a"])
        out = np.empty((2, self.page_bytes), np.uint8)
        status = await backend.read(make_extents(versions, [(b"a", 0, 1, 0), (b"b", 0, 1, 1)]), out)
        assert status.tolist() == [PageStatus.ABSENT, PageStatus.OK]
        assert (await backend.stat([b"a", b"b"])).pages.tolist() == [-1, 1]

    async def test_delete_of_nothing_does_nothing(self, backend: Backend) -> None:
        needs_writable(backend)
        assert (await backend.delete([])).shape == (0,)

    async def test_keys_lists_every_object_once(self, backend: Backend) -> None:
        needs_listable(backend)
        objects = {b"key/%d" % index: self.make(b"", 1) for index in range(2500)}
        await self.publish(backend, objects)
        listed = await list_keys(backend)
        assert len(listed) == len(objects)
        assert set(listed) == set(objects)

    async def test_keys_of_an_empty_store_lists_nothing(self, backend: Backend) -> None:
        needs_listable(backend)
        assert await list_keys(backend) == []

    async def test_a_listing_may_be_left_halfway(self, backend: Backend) -> None:
        needs_listable(backend)
        objects = {b"%d" % index: self.make(b"", 1) for index in range(10)}
        await self.publish(backend, objects)
        for _ in range(40):
            listing = aiter(backend.keys())
            assert await anext(listing) in objects
        assert len(await list_keys(backend)) == 10
