from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import numpy as np
import pytest
import pytest_asyncio
from kvtier_memory import MemoryBackend
from kvtier_tcp import TcpBackend
from server_peers import connect, failure_of, knock

from kvtier.backend import ExtentBatch
from kvtier.pages import U8
from kvtier.server import Server, ServerLimits, run, run_server, serve
from kvtier.settings import OriginSettings, ServeSettings
from kvtier.testing.batches import make_extents, put_objects, read_objects
from kvtier.testing.pages import make_pages
from kvtier.wire.messages import (
    ErrorCode,
    Failure,
    Hello,
    Read,
    Stat,
)

PAGE_BYTES = 512

pytestmark = pytest.mark.asyncio


class GatedBackend(MemoryBackend):
    """A memory backend whose reads wait until they are let through."""

    def __init__(self, page_bytes: int, capacity_bytes: int | None = None) -> None:
        super().__init__(page_bytes, capacity_bytes)
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.reads_begun = 0
        self.reads_cancelled = asyncio.Event()

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        self.reads_begun += 1
        self.begun.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.reads_cancelled.set()
            raise
        return await super().read(batch, out)


@pytest_asyncio.fixture
async def memory() -> AsyncIterator[MemoryBackend]:
    backend = await MemoryBackend.open({}, PAGE_BYTES)
    yield backend
    await backend.close()


@pytest_asyncio.fixture
async def gated() -> AsyncIterator[GatedBackend]:
    backend = GatedBackend(PAGE_BYTES)
    yield backend
    await backend.close()


@pytest_asyncio.fixture
async def server(memory: MemoryBackend) -> AsyncIterator[Server]:
    server = await serve(memory, page_bytes=PAGE_BYTES)
    yield server
    await server.close()


def read_of(version: int, pages: int) -> Read:
    return Read(make_extents({b"a": version}, [(b"a", 0, pages, 0)]))


class TestBounds:
    async def test_no_more_is_begun_than_may_be_in_flight(self, gated: GatedBackend) -> None:
        versions = await put_objects(
            gated, {b"a": make_pages(b"a", 0, 100, PAGE_BYTES)}, PAGE_BYTES
        )
        limits = ServerLimits(inflight_bytes_max=5 * 100 * PAGE_BYTES)
        server = await serve(gated, page_bytes=PAGE_BYTES, limits=limits)
        client = await connect(server)
        client.send(*[read_of(versions[b"a"], 100)] * 500)
        other = await connect(server)
        for _ in range(20):  # the server has taken what it will once it answered these
            await other.ask(Stat((b"a",)))
        assert 1 <= gated.reads_begun <= 5
        gated.gate.set()
        for _ in range(500):
            assert len((await client.next())[2]) == 100 * PAGE_BYTES
        await client.close()
        await other.close()
        await server.close()

    async def test_who_does_not_read_is_not_read_for(self, gated: GatedBackend) -> None:
        gated.gate.set()
        pages = make_pages(b"a", 0, 2000, PAGE_BYTES)
        versions = await put_objects(gated, {b"a": pages}, PAGE_BYTES)
        limits = ServerLimits(inflight_bytes_max=4 * pages.nbytes)
        server = await serve(gated, page_bytes=PAGE_BYTES, limits=limits)
        client = await knock(server)
        client.writer.transport.pause_reading()
        client.send(Hello(b""), *[read_of(versions[b"a"], 2000)] * 200)
        other = await connect(server)
        begun = -1
        while begun != gated.reads_begun:  # until the sockets are full and nothing moves
            begun = gated.reads_begun
            for _ in range(50):
                await other.ask(Stat((b"a",)))
        assert begun < 100
        client.writer.transport.resume_reading()
        for _ in range(201):
            await client.next()
        assert gated.reads_begun == 200
        await client.close()
        await other.close()
        await server.close()

    async def test_small_requests_are_bounded_too(self, gated: GatedBackend) -> None:
        limits = ServerLimits(inflight_bytes_max=100_000)
        server = await serve(gated, page_bytes=PAGE_BYTES, limits=limits)
        client = await connect(server)
        client.send(*[read_of(1, 1)] * 2000)
        other = await connect(server)
        for _ in range(20):
            await other.ask(Stat((b"a",)))
        assert 1 <= gated.reads_begun <= 25
        gated.gate.set()
        await client.close()
        await other.close()
        await server.close()


class TestEnding:
    async def test_what_will_be_refused_waits_for_no_memory(self, gated: GatedBackend) -> None:
        server = await serve(gated, page_bytes=PAGE_BYTES)
        client, other = await connect(server), await connect(server)
        client.send(read_of(1, 1))
        await gated.begun.wait()
        async with asyncio.timeout(10):
            refused, _ = await other.ask(read_of(1, 1 << 22))  # more than all memory there is
        assert isinstance(refused, Failure)
        assert refused.code == ErrorCode.LIMIT
        await client.close()
        await other.close()
        await server.close()

    async def test_the_last_small_request_of_a_connection_waits_for_no_memory(
        self, gated: GatedBackend
    ) -> None:
        limits = ServerLimits(memory_bytes_max=1000 * PAGE_BYTES)
        server = await serve(gated, page_bytes=PAGE_BYTES, limits=limits)
        client, other = await connect(server), await connect(server)
        client.send(read_of(1, 1000))
        await gated.begun.wait()
        other.send(Stat((b"a",)), Stat((b"b",)))  # the second comes while the first is running
        async with asyncio.timeout(10):
            await other.next()
            await other.next()
        await client.close()
        await other.close()
        await server.close()

    async def test_a_client_that_leaves_cancels_what_it_asked(self, gated: GatedBackend) -> None:
        server = await serve(gated, page_bytes=PAGE_BYTES)
        client = await connect(server)
        client.send(read_of(1, 1))
        await gated.begun.wait()
        await client.close()
        await gated.reads_cancelled.wait()
        await server.close()

    async def test_close_answers_what_was_received(self, gated: GatedBackend) -> None:
        server = await serve(gated, page_bytes=PAGE_BYTES)
        backend = await TcpBackend.open({"url": server.url}, PAGE_BYTES)
        pages = make_pages(b"a", 0, 3, PAGE_BYTES)
        await put_objects(backend, {b"a": pages}, PAGE_BYTES)
        read = asyncio.ensure_future(read_objects(backend, [b"a"], PAGE_BYTES))
        await gated.begun.wait()
        closing = asyncio.ensure_future(server.close())
        await asyncio.sleep(0)
        gated.gate.set()
        np.testing.assert_array_equal((await read)[b"a"], pages)
        await closing
        await backend.close()

    async def test_close_cuts_what_takes_longer_than_the_grace(self, gated: GatedBackend) -> None:
        server = await serve(gated, page_bytes=PAGE_BYTES)
        client = await connect(server)
        client.send(read_of(1, 1))
        await gated.begun.wait()
        await server.close(grace_s=0.05)
        assert gated.reads_cancelled.is_set()
        assert await client.is_hung_up()
        await client.close()

    async def test_a_second_close_does_nothing(self, server: Server) -> None:
        await server.close()
        await server.close()

    async def test_idle_clients_do_not_hold_up_a_close(self, server: Server) -> None:
        clients = [await connect(server) for _ in range(3)]
        async with asyncio.timeout(2):
            await server.close(grace_s=60)
        for client in clients:
            assert (await failure_of(client)).code == ErrorCode.CLOSING
            assert await client.is_hung_up()
            await client.close()


class TestService:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    async def test_a_signal_ends_it(self, memory: MemoryBackend, number: signal.Signals) -> None:
        async def stop_when_ready(url: str) -> None:
            backend = await TcpBackend.open({"url": url}, PAGE_BYTES)
            await backend.close()
            os.kill(os.getpid(), number)

        clients: list[asyncio.Task[None]] = []
        before = signal.getsignal(number)

        def ready(url: str, _: str | None) -> None:
            clients.append(asyncio.create_task(stop_when_ready(url)))

        await run_server(memory, ServeSettings(port=0), PAGE_BYTES, ready)
        await clients[0]
        assert signal.getsignal(number) is before

    async def test_cancelling_it_ends_it(self, memory: MemoryBackend) -> None:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        settings = ServeSettings(port=0)
        service = asyncio.create_task(
            run_server(memory, settings, PAGE_BYTES, lambda url, _: ready.set_result(url))
        )
        address = urlsplit(await ready)
        service.cancel()
        await asyncio.wait([service])
        assert service.cancelled()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(address.hostname, address.port)

    async def test_it_opens_the_origin_that_settings_name(self) -> None:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        origin = OriginSettings("memory", {"capacity_bytes": 1 << 20})
        service = asyncio.create_task(
            run(origin, ServeSettings(port=0), PAGE_BYTES, lambda url, _: ready.set_result(url))
        )
        backend = await TcpBackend.open({"url": await ready}, PAGE_BYTES)
        await put_objects(backend, {b"a": make_pages(b"a", 0, 1, PAGE_BYTES)}, PAGE_BYTES)
        await backend.close()
        service.cancel()
        await asyncio.wait([service])
