"""Many calls at once, and calls that are cancelled."""

from __future__ import annotations

import asyncio
from typing import Final

import numpy as np

from kvtier.backend import Backend, ExtentBatch
from kvtier.pages import U8, PageStatus
from kvtier.testing.batches import make_extents, make_objects, put_objects, read_objects
from kvtier.testing.contract.base import ContractBase, needs_writable

_GENERATIONS: Final = 40
_PAGES: Final = 32
_TURNS_MAX: Final = 200
"""Turns of the event loop by which even a remote read of a few MiB has ended."""


class ConcurrencyContract(ContractBase):
    def pages_of(self, backend: Backend, size_bytes: int) -> int:
        """Pages of an object of that size, or of the largest there can be."""
        return min(size_bytes // self.page_bytes, backend.capability.object_pages_max)

    async def test_concurrent_reads_get_their_own_pages(self, backend: Backend) -> None:
        objects = {b"%d" % index: self.make(b"%d" % index, 16) for index in range(32)}
        await self.publish(backend, objects)
        found = await asyncio.gather(
            *(read_objects(backend, [key], self.page_bytes) for key in objects)
        )
        for (key, pages), got in zip(objects.items(), found, strict=True):
            np.testing.assert_array_equal(got[key], pages)

    async def test_concurrent_puts_of_several_keys_all_land(self, backend: Backend) -> None:
        needs_writable(backend)
        objects = {b"%d" % index: self.make(b"%d" % index, 4) for index in range(32)}
        await asyncio.gather(
            *(put_objects(backend, {key: value}, self.page_bytes) for key, value in objects.items())
        )
        found = await read_objects(backend, list(objects), self.page_bytes)
        for key, pages in objects.items():
            np.testing.assert_array_equal(found[key], pages)

    async def test_concurrent_puts_of_one_key_leave_one_of_them_whole(
        self, backend: Backend
    ) -> None:
        needs_writable(backend)
        versions = await asyncio.gather(
            *(
                put_objects(backend, {b"a": self.make(b"a", _PAGES, number)}, self.page_bytes)
                for number in range(16)
            )
        )
        (winner,) = (await backend.stat([b"a"])).versions.tolist()
        number = versions.index({b"a": winner})
        found = await read_objects(backend, [b"a"], self.page_bytes)
        np.testing.assert_array_equal(found[b"a"], self.make(b"a", _PAGES, number))

    async def test_a_reader_beside_a_writer_never_sees_a_mixture(self, backend: Backend) -> None:
        needs_writable(backend)
        contents: dict[int, int] = {}
        reads: list[tuple[int, U8]] = []
        await put_objects(backend, {b"a": self.make(b"a", _PAGES)}, self.page_bytes)

        async def write() -> None:
            generation = 0
            while generation < _GENERATIONS or not reads:
                pages = self.make(b"a", _PAGES, generation)
                version = await put_objects(backend, {b"a": pages}, self.page_bytes)
                contents[version[b"a"]] = generation
                # Ever longer, so that a read fits between two puts in the end.
                for _ in range(generation):
                    await asyncio.sleep(0)
                generation += 1

        async def read(writer: asyncio.Task[None]) -> None:
            while not writer.done():
                (version,) = (await backend.stat([b"a"])).versions.tolist()
                extents = [(b"a", page, 4, page) for page in range(0, _PAGES, 4)]
                out = np.empty((_PAGES, self.page_bytes), np.uint8)
                status = await backend.read(make_extents({b"a": version}, extents), out)
                assert set(status.tolist()) <= {PageStatus.OK, PageStatus.ABSENT}
                if not status.any():
                    reads.append((version, out))
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            writer = group.create_task(write())
            for _ in range(3):
                group.create_task(read(writer))
        for version, out in reads:
            if version in contents:
                expected = self.make(b"a", _PAGES, contents[version])
                np.testing.assert_array_equal(out, expected)

    async def test_a_cancelled_read_leaves_out_alone_from_then_on(self, backend: Backend) -> None:
        # Larger than what a socket holds, so that a remote answer is cut off half received.
        pages = self.make(b"a", self.pages_of(backend, 6 << 20))
        await self.publish(backend, {b"a": pages})
        batch = await _in_pieces(backend, b"a")
        out = np.empty_like(pages)
        turns, cancelled = 0, True
        while cancelled and turns < _TURNS_MAX:
            out[:] = 0
            task = asyncio.ensure_future(backend.read(batch, out))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            cancelled = task.cancelled()
            before = out.copy()
            found = (await read_objects(backend, [b"a"], self.page_bytes))[b"a"]
            assert found is not None
            assert np.array_equal(found, pages)
            assert np.array_equal(out, before)
            turns += 1 + turns // 8

    async def test_reads_beside_a_cancelled_one_are_not_disturbed(self, backend: Backend) -> None:
        pages = self.make(b"a", self.pages_of(backend, 2 << 20))
        await self.publish(backend, {b"a": pages})
        batch = await _in_pieces(backend, b"a")
        outs = [np.empty_like(pages) for _ in range(8)]
        tasks = [asyncio.ensure_future(backend.read(batch, out)) for out in outs]
        for task in tasks[::2]:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait(tasks)
        for task, out in zip(tasks[1::2], outs[1::2], strict=True):
            assert not task.result().any()
            np.testing.assert_array_equal(out, pages)

    async def test_a_cancelled_put_publishes_all_of_an_object_or_nothing(
        self, backend: Backend
    ) -> None:
        needs_writable(backend)
        for turns in range(6):
            pages = self.make(b"a", 2000, turns)
            task = asyncio.ensure_future(backend.put(make_objects({b"a": pages}, self.page_bytes)))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            found = (await read_objects(backend, [b"a"], self.page_bytes))[b"a"]
            if found is not None:
                generation = next(
                    old for old in range(turns + 1) if (self.make(b"a", 1, old) == found[0]).all()
                )
                np.testing.assert_array_equal(found, self.make(b"a", 2000, generation))


async def _in_pieces(backend: Backend, key: bytes) -> ExtentBatch:
    """An object, in extents of at most 64 pages."""
    stats = await backend.stat([key])
    pages, length = int(stats.pages[0]), min(64, backend.capability.extent_pages_max)
    extents = [(key, first, min(length, pages - first), first) for first in range(0, pages, length)]
    return make_extents({key: int(stats.versions[0])}, extents)
