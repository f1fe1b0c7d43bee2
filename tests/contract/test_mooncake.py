from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import numpy as np
import pytest
import pytest_asyncio
from kvtier_mooncake import MooncakeBackend
from kvtier_mooncake.layout import Head, Names, chunk_names, new_version, pack_head, unpack_head
from kvtier_mooncake.settings import parse_settings
from mooncake_servers import Master, running

from kvtier.backend import Backend
from kvtier.pages import U8
from kvtier.testing.batches import put_objects, read_objects
from kvtier.testing.contract import BackendContract
from kvtier.testing.pages import make_pages


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    with running(tmp_path_factory.mktemp("mooncake")) as master:
        master.add_host()
        yield master


class TestMooncake(BackendContract):
    """With so little memory that batches are cut, and such small chunks that extents are."""

    options: ClassVar[dict[str, object]] = {
        "threads": 2,
        "buffer_bytes": 2 << 20,
        "chunk_bytes": 100 << 10,
    }

    @pytest_asyncio.fixture
    async def backend(self, master: Master) -> AsyncIterator[Backend]:
        self.opened = {
            "master": master.address,
            "admin": master.admin,
            "namespace": uuid4().hex,
            **self.options,
        }
        self.link = await master.link(self.opened, self.page_bytes)
        backend = MooncakeBackend(
            self.link, parse_settings(self.opened, self.page_bytes), self.page_bytes
        )
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
        assert alone.segments() == 1
        await backend.close()
        assert alone.segments() == 0
