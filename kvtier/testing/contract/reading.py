"""Reading: extents of objects into rows, answered one by one."""

from __future__ import annotations

import numpy as np
import pytest

from kvtier.backend import Backend
from kvtier.pages import U8, PageStatus
from kvtier.testing.batches import make_extents, read_objects
from kvtier.testing.contract.base import ContractBase

_SENTINEL = 0xA5


class ReadingContract(ContractBase):
    def blank(self, rows: int) -> U8:
        """Rows that look untouched: u8[rows, page_bytes]."""
        return np.full((rows, self.page_bytes), _SENTINEL, np.uint8)

    async def test_whole_objects_come_back(self, backend: Backend) -> None:
        objects = {b"one": self.make(b"one", 1), b"seven": self.make(b"seven", 7)}
        await self.publish(backend, objects)
        found = await read_objects(backend, list(objects), self.page_bytes)
        for key, pages in objects.items():
            np.testing.assert_array_equal(found[key], pages)

    async def test_extents_land_in_the_rows_that_they_name(self, backend: Backend) -> None:
        a, b = self.make(b"a", 9), self.make(b"b", 4)
        versions = await self.publish(backend, {b"a": a, b"b": b})
        extents = [(b"b", 1, 2, 7), (b"a", 5, 4, 0), (b"a", 0, 1, 9), (b"b", 0, 1, 5)]
        out = self.blank(12)
        status = await backend.read(make_extents(versions, extents), out)
        assert status.tolist() == [PageStatus.OK] * 4
        np.testing.assert_array_equal(out[7:9], b[1:3])
        np.testing.assert_array_equal(out[0:4], a[5:9])
        np.testing.assert_array_equal(out[9], a[0])
        np.testing.assert_array_equal(out[5], b[0])

    async def test_rows_that_no_extent_names_stay_as_they_are(self, backend: Backend) -> None:
        versions = await self.publish(backend, {b"a": self.make(b"a", 8)})
        out = self.blank(16)
        extents = [(b"a", 0, 2, 3), (b"a", 4, 1, 11)]
        await backend.read(make_extents(versions, extents), out)
        unnamed = np.delete(out, [3, 4, 11], axis=0)
        assert (unnamed == _SENTINEL).all()

    async def test_out_may_be_part_of_a_larger_memory(self, backend: Backend) -> None:
        pages = self.make(b"a", 4)
        versions = await self.publish(backend, {b"a": pages})
        arena = self.blank(12)
        await backend.read(make_extents(versions, [(b"a", 0, 4, 1)]), arena[4:10])
        np.testing.assert_array_equal(arena[5:9], pages)
        assert (np.delete(arena, range(5, 9), axis=0) == _SENTINEL).all()

    async def test_a_page_may_be_asked_for_twice(self, backend: Backend) -> None:
        pages = self.make(b"a", 3)
        versions = await self.publish(backend, {b"a": pages})
        out = self.blank(5)
        batch = make_extents(versions, [(b"a", 1, 1, 4), (b"a", 1, 1, 0), (b"a", 0, 3, 1)])
        status = await backend.read(batch, out)
        assert status.tolist() == [PageStatus.OK] * 3
        np.testing.assert_array_equal(out, pages[[1, 0, 1, 2, 1]])

    async def test_a_large_batch_of_scattered_pages_comes_back(self, backend: Backend) -> None:
        rng = np.random.default_rng(1)
        objects = {b"%d" % index: self.make(b"%d" % index, 40) for index in range(50)}
        versions = await self.publish(backend, objects)
        keys = list(objects)
        count = min(3000, backend.capability.batch_extents_max)
        rows = rng.permutation(count).tolist()
        picks = rng.integers(0, (50, 40), (count, 2)).tolist()
        extents = [(keys[k], page, 1, row) for (k, page), row in zip(picks, rows, strict=True)]
        out = self.blank(count)
        status = await backend.read(make_extents(versions, extents), out)
        assert not status.any()
        for key, page, _, row in extents:
            np.testing.assert_array_equal(out[row], objects[key][page])

    async def test_the_status_is_one_byte_per_extent(self, backend: Backend) -> None:
        versions = await self.publish(backend, {b"a": self.make(b"a", 2)})
        batch = make_extents(versions, [(b"a", 0, 2, 0), (b"a", 1, 1, 2)])
        status = await backend.read(batch, self.blank(3))
        assert status.dtype == np.uint8
        assert status.shape == (2,)

    async def test_an_empty_batch_is_answered_by_nothing(self, backend: Backend) -> None:
        status = await backend.read(make_extents({}, []), self.blank(0))
        assert status.dtype == np.uint8
        assert status.shape == (0,)

    async def test_a_batch_with_a_key_but_no_extent_is_answered_by_nothing(
        self, backend: Backend
    ) -> None:
        status = await backend.read(make_extents({b"a": 1}, []), self.blank(1))
        assert status.shape == (0,)

    async def test_an_unknown_key_is_absent(self, backend: Backend) -> None:
        status = await backend.read(make_extents({b"none": 1}, [(b"none", 0, 1, 0)]), self.blank(1))
        assert status.tolist() == [PageStatus.ABSENT]

    async def test_another_version_is_absent(self, backend: Backend) -> None:
        versions = await self.publish(backend, {b"a": self.make(b"a", 1)})
        other = {b"a": versions[b"a"] ^ 1}
        status = await backend.read(make_extents(other, [(b"a", 0, 1, 0)]), self.blank(1))
        assert status.tolist() == [PageStatus.ABSENT]

    async def test_a_batch_succeeds_in_part(self, backend: Backend) -> None:
        pages = {b"a": self.make(b"a", 6), b"b": self.make(b"b", 6)}
        versions = await self.publish(backend, pages)
        wanted = {**versions, b"gone": 7}
        extents = [(b"gone", 0, 2, 0), (b"a", 2, 3, 2), (b"gone", 2, 1, 5), (b"b", 0, 1, 6)]
        out = self.blank(7)
        status = await backend.read(make_extents(wanted, extents), out)
        ok, absent = PageStatus.OK, PageStatus.ABSENT
        assert status.tolist() == [absent, ok, absent, ok]
        np.testing.assert_array_equal(out[2:5], pages[b"a"][2:5])
        np.testing.assert_array_equal(out[6], pages[b"b"][0])

    async def test_an_extent_that_ends_past_the_end_of_its_object_is_absent_alone(
        self, backend: Backend
    ) -> None:
        pages = self.make(b"a", 3)
        versions = await self.publish(backend, {b"a": pages})
        out = self.blank(10)
        last = (1 << 32) - 1
        extents = [(b"a", 2, 2, 0), (b"a", 0, 3, 2), (b"a", 3, 2, 5), (b"a", last, 3, 7)]
        status = await backend.read(make_extents(versions, extents), out)
        ok, absent = PageStatus.OK, PageStatus.ABSENT
        assert status.tolist() == [absent, ok, absent, absent]
        np.testing.assert_array_equal(out[2:5], pages)

    async def test_nothing_but_extents_past_the_end_is_no_failure_of_a_batch(
        self, backend: Backend
    ) -> None:
        versions = await self.publish(backend, {b"a": self.make(b"a", 3), b"b": self.make(b"b", 1)})
        batch = make_extents(versions, [(b"a", 3, 1, 0), (b"b", 7, 2, 1)])
        status = await backend.read(batch, self.blank(3))
        assert status.tolist() == [PageStatus.ABSENT] * 2

    async def test_stat_tells_pages_and_version(self, backend: Backend) -> None:
        versions = await self.publish(backend, {b"a": self.make(b"a", 5)})
        stats = await backend.stat([b"none", b"a", b"a"])
        assert stats.pages.dtype == np.int64
        assert stats.versions.dtype == np.uint64
        assert stats.pages.tolist() == [-1, 5, 5]
        assert stats.versions.tolist() == [0, versions[b"a"], versions[b"a"]]
        assert versions[b"a"] != 0

    async def test_stat_of_nothing_is_nothing(self, backend: Backend) -> None:
        stats = await backend.stat([])
        assert stats.pages.shape == stats.versions.shape == (0,)

    async def test_what_the_store_got_elsewhere_can_be_read(self, backend: Backend) -> None:
        pages = self.make(b"elsewhere", 3)
        await self.raw_set(backend, b"elsewhere", pages)
        found = await read_objects(backend, [b"elsewhere"], self.page_bytes)
        np.testing.assert_array_equal(found[b"elsewhere"], pages)

    @pytest.mark.parametrize("count", [1, 33])
    async def test_versions_stay_while_nothing_is_written(
        self, backend: Backend, count: int
    ) -> None:
        objects = {b"%d" % index: self.make(b"%d" % index, 1) for index in range(count)}
        versions = await self.publish(backend, objects)
        stats = await backend.stat(list(objects))
        assert stats.versions.tolist() == list(versions.values())
