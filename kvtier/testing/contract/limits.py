"""Limits are what the capability says, and a request beyond them is refused whole."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from kvtier.backend import API_VERSION, Backend, ExtentBatch, ObjectBatch
from kvtier.errors import LimitError
from kvtier.pages import OBJECT_PAGES_MAX, U8
from kvtier.testing.batches import make_extents, make_objects
from kvtier.testing.contract.base import ContractBase, needs_writable

_TESTED_BYTES_MAX: Final = 64 << 20
"""Limits that would need more memory than this are believed."""


class LimitsContract(ContractBase):
    def rows(self, count: int) -> U8:
        return np.empty((count, self.page_bytes), np.uint8)

    async def test_it_is_written_for_this_interface(self, backend: Backend) -> None:
        assert backend.capability.api_version == API_VERSION

    async def test_as_many_extents_as_it_says_are_read_at_once(self, backend: Backend) -> None:
        count = backend.capability.batch_extents_max
        if count * self.page_bytes > _TESTED_BYTES_MAX:
            pytest.skip("needs too much memory")
        versions = await self.publish(backend, {b"a": self.make(b"a", 1)})
        status = await backend.read(_same_page(versions[b"a"], count), self.rows(count))
        assert not status.any()

    async def test_more_extents_than_it_says_are_refused(self, backend: Backend) -> None:
        count = backend.capability.batch_extents_max + 1
        with pytest.raises(LimitError):
            await backend.read(_same_page(1, count), self.rows(1))

    async def test_an_extent_as_long_as_it_says_is_read(self, backend: Backend) -> None:
        can = backend.capability
        count = min(can.extent_pages_max, can.object_pages_max)
        if count * self.page_bytes > _TESTED_BYTES_MAX:
            pytest.skip("needs too much memory")
        pages = self.make(b"a", count)
        versions = await self.publish(backend, {b"a": pages})
        out = self.rows(count)
        status = await backend.read(make_extents(versions, [(b"a", 0, count, 0)]), out)
        assert not status.any()
        np.testing.assert_array_equal(out, pages)

    async def test_a_longer_extent_than_it_says_is_refused(self, backend: Backend) -> None:
        count = backend.capability.extent_pages_max + 1
        with pytest.raises(LimitError):
            await backend.read(make_extents({b"a": 1}, [(b"a", 0, count, 0)]), self.rows(1))

    async def test_an_extent_of_no_page_is_refused(self, backend: Backend) -> None:
        with pytest.raises(LimitError):
            await backend.read(make_extents({b"a": 1}, [(b"a", 0, 0, 0)]), self.rows(1))

    async def test_an_extent_that_leaves_out_is_refused(self, backend: Backend) -> None:
        versions = await self.publish(backend, {b"a": self.make(b"a", 4)})
        with pytest.raises(LimitError):
            await backend.read(make_extents(versions, [(b"a", 0, 3, 2)]), self.rows(4))

    async def test_an_extent_of_a_key_that_the_batch_lacks_is_refused(
        self, backend: Backend
    ) -> None:
        one, zero = np.ones(1, np.uint32), np.zeros(1, np.uint32)
        batch = ExtentBatch((b"a",), np.ones(1, np.uint64), one, zero, one, zero)
        with pytest.raises(LimitError):
            await backend.read(batch, self.rows(1))

    async def test_an_out_of_another_shape_is_refused(self, backend: Backend) -> None:
        versions = await self.publish(backend, {b"a": self.make(b"a", 1)})
        batch = make_extents(versions, [(b"a", 0, 1, 0)])
        width = self.page_bytes
        outs: tuple[NDArray[Any], ...] = (
            np.empty((4, width * 2), np.uint8),
            np.empty(4 * width, np.uint8),
            np.empty((4, width), np.uint16),
            np.empty((8, width), np.uint8)[::2],
        )
        for out in outs:
            with pytest.raises(LimitError):
                await backend.read(batch, out)

    async def test_a_larger_object_than_it_says_is_refused(self, backend: Backend) -> None:
        needs_writable(backend)
        count = backend.capability.object_pages_max + 1
        if count > OBJECT_PAGES_MAX:
            pytest.skip("a larger object cannot be named")
        payload = np.broadcast_to(
            np.zeros((1, self.page_bytes), np.uint8), (count, self.page_bytes)
        )
        with pytest.raises(LimitError):
            await backend.put(ObjectBatch((b"a",), np.array([count], np.uint32), payload))

    async def test_an_object_of_no_page_is_refused(self, backend: Backend) -> None:
        needs_writable(backend)
        with pytest.raises(LimitError):
            await backend.put(make_objects({b"a": self.rows(0)}, self.page_bytes))

    async def test_a_payload_of_another_size_is_refused(self, backend: Backend) -> None:
        needs_writable(backend)
        with pytest.raises(LimitError):
            await backend.put(ObjectBatch((b"a",), np.array([2], np.uint32), self.rows(3)))

    async def test_a_put_that_names_a_key_twice_is_refused(self, backend: Backend) -> None:
        needs_writable(backend)
        batch = ObjectBatch((b"a", b"a"), np.array([1, 1], np.uint32), self.rows(2))
        with pytest.raises(LimitError):
            await backend.put(batch)

    async def test_a_refused_put_publishes_nothing(self, backend: Backend) -> None:
        needs_writable(backend)
        batch = ObjectBatch((b"a", b""), np.array([1, 1], np.uint32), self.rows(2))
        with pytest.raises(LimitError):
            await backend.put(batch)
        assert (await backend.stat([b"a"])).pages.tolist() == [-1]


def _same_page(version: int, count: int) -> ExtentBatch:
    """The first page of object ``a``, ``count`` times."""
    zeros, ones = np.zeros(count, np.uint32), np.ones(count, np.uint32)
    rows = np.arange(count, dtype=np.uint32)
    return ExtentBatch((b"a",), np.array([version], np.uint64), zeros, zeros, ones, rows)
