from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from kvtier_file import FileBackend
from kvtier_memory import MemoryBackend
from kvtier_tcp import TcpBackend

from kvtier.backend import Backend
from kvtier.pages import U8
from kvtier.server import Server, ServerLimits, serve
from kvtier.testing.batches import put_objects, read_objects
from kvtier.testing.contract import BackendContract
from kvtier.wire.frames import FrameLimits


class OverTcp(BackendContract):
    """The contract through a server, with the hooks that its own backend gives."""

    server: Server

    @pytest_asyncio.fixture
    async def behind(self) -> AsyncIterator[Backend]:
        backend = await MemoryBackend.open({}, self.page_bytes)
        yield backend
        await backend.close()

    @pytest_asyncio.fixture
    async def backend(self, behind: Backend) -> AsyncIterator[Backend]:
        self.behind_server = behind
        self.server = await serve(behind, page_bytes=self.page_bytes, limits=self.limits())
        backend = await TcpBackend.open({"url": self.server.url}, self.page_bytes)
        yield backend
        await backend.close()
        await self.server.close()

    def limits(self) -> ServerLimits:
        return ServerLimits()

    async def raw_get(self, backend: Backend, key: bytes) -> U8 | None:
        return (await read_objects(self.behind_server, [key], self.page_bytes))[key]

    async def raw_set(self, backend: Backend, key: bytes, pages: U8) -> None:
        await put_objects(self.behind_server, {key: pages}, self.page_bytes)

    async def reopen(self, backend: Backend) -> Backend:
        return await TcpBackend.open({"url": self.server.url}, self.page_bytes)


class TestTcpOverMemory(OverTcp):
    pass


class TestTcpOverFile(OverTcp):
    @pytest_asyncio.fixture
    async def behind(self, tmp_path: Path) -> AsyncIterator[Backend]:
        backend = await FileBackend.open({"root": tmp_path, "sync": False}, self.page_bytes)
        yield backend
        await backend.close()


class TestTcpWithNarrowLimits(OverTcp):
    """So narrow that batches are cut, objects go in parts and connections wait."""

    def limits(self) -> ServerLimits:
        frame = FrameLimits(payload_bytes_max=1 << 18)
        return ServerLimits(frame=frame, inflight_bytes_max=1, upload_bytes_max=8 << 20)

    @pytest.mark.asyncio
    async def test_extents_have_the_bound_of_a_frame_and_objects_that_of_an_upload(
        self, backend: Backend
    ) -> None:
        assert backend.capability.extent_pages_max == (1 << 18) // self.page_bytes
        assert backend.capability.object_pages_max == (8 << 20) // self.page_bytes
