from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import numpy as np
import pytest
import pytest_asyncio
from kvtier_mooncake import MooncakeBackend
from kvtier_mooncake.layout import Head, Names, chunk_names, new_version, pack_head, unpack_head
from kvtier_mooncake.link import Link
from kvtier_mooncake.settings import parse_settings
from mooncake_servers import Master, running

from kvtier.backend import Backend
from kvtier.pages import U8
from kvtier.testing.batches import put_objects, read_objects
from kvtier.testing.contract import BackendContract
from kvtier.testing.pages import make_pages


class BorrowedLink:
    """A link that outlives the backends which use it: making one takes a second."""

    def __init__(self, link: Link) -> None:
        self.store, self.config = link.store, link.config
        self.workers, self.publishing, self.publisher = (
            link.workers,
            link.publishing,
            link.publisher,
        )

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    with running(tmp_path_factory.mktemp("mooncake")) as master:
        master.add_host()
        yield master


@pytest.fixture(scope="module")
def links(master: Master) -> Iterator[dict[str, Link]]:
    """One for each class of tests, once it was needed."""
    links: dict[str, Link] = {}
    yield links
    for link in links.values():
        asyncio.run(link.close())


class OverMooncake(BackendContract):
    options: ClassVar[dict[str, object]] = {}

    @pytest_asyncio.fixture
    async def backend(self, master: Master, links: dict[str, Link]) -> AsyncIterator[Backend]:
        """Each in a namespace of its own, so that it is empty."""
        self.opened = {
            "master": master.address,
            "admin": master.admin,
            "namespace": uuid4().hex,
            **self.options,
        }
        settings = parse_settings(self.opened, self.page_bytes)
        if type(self).__name__ not in links:
            links[type(self).__name__] = await Link.open(settings)
        self.link = links[type(self).__name__]
        backend = MooncakeBackend(BorrowedLink(self.link), settings, self.page_bytes)  # type: ignore[arg-type]
        yield backend
        await backend.close()

    async def raw_get(self, backend: Backend, key: bytes) -> U8 | None:
        name = self.name_of(key)
        head = unpack_head(name, self.link.store.get(name))
        if head is None:
            return None
        payload = b"".join(self.link.store.get(chunk) for chunk in chunk_names(name, head))
        return np.frombuffer(payload, np.uint8).reshape(-1, self.page_bytes)

    async def raw_set(self, backend: Backend, key: bytes, pages: U8) -> None:
        name, head = self.name_of(key), Head(new_version(), len(pages), 2)
        for number, chunk in enumerate(chunk_names(name, head)):
            assert self.link.store.put(chunk, pages[2 * number :][:2].tobytes()) == 0
        assert self.link.store.put(name, pack_head(name, head)) == 0

    def name_of(self, key: bytes) -> str:
        return Names(str(self.opened["namespace"]), self.page_bytes).head(key)

    async def reopen(self, backend: Backend) -> Backend:
        return await MooncakeBackend.open(self.opened, self.page_bytes)


class TestMooncake(OverMooncake):
    pass


class TestMooncakeInSmallPieces(OverMooncake):
    """So little memory that batches are cut, and such small chunks that extents are."""

    options: ClassVar = {"threads": 2, "buffer_bytes": 2 << 20, "chunk_bytes": 100 << 10}


@pytest.mark.asyncio
async def test_memory_that_is_lent_to_the_store_holds_objects_until_it_is_closed(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as alone:
        options = {"master": alone.address, "segment_bytes": 64 << 20}
        backend = await MooncakeBackend.open(options, 512)
        assert not backend.capability.persistent
        pages = make_pages(b"a", 0, 9, 512)
        await put_objects(backend, {b"a": pages}, 512)
        np.testing.assert_array_equal((await read_objects(backend, [b"a"], 512))[b"a"], pages)
        await backend.close()
        again = await MooncakeBackend.open({"master": alone.address}, 512)
        assert (await again.stat([b"a"])).pages.tolist() == [-1]
        await again.close()
