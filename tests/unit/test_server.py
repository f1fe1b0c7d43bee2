from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio
from kvtier_memory import MemoryBackend
from kvtier_tcp import TcpBackend

from kvtier.backend import Capability, ExtentBatch
from kvtier.errors import BackendError, SettingsError
from kvtier.pages import U8, PageStatus
from kvtier.server import Server, ServerLimits, run, run_server, serve
from kvtier.settings import OriginSettings
from kvtier.testing.batches import make_extents, make_objects, put_objects, read_objects
from kvtier.testing.pages import make_pages
from kvtier.wire.codec import decode, encode
from kvtier.wire.frames import Frame, FrameLimits, FrameParser, Kind, encode_frame
from kvtier.wire.messages import (
    ErrorCode,
    Failure,
    Hello,
    Keys,
    KeysReply,
    Message,
    Put,
    Read,
    ReadReply,
    Stat,
    StatReply,
    Welcome,
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


class Client:
    """A connection that says whatever a test wants it to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self._parser = FrameParser(self, FrameLimits())
        self._replies: list[tuple[int, Message, bytes]] = []
        self._payload = bytearray()

    @classmethod
    async def connect(cls, server: Server, token: str = "") -> Client:
        client = await cls.connect_silently(server)
        welcome = (await client.ask(Hello(token.encode())))[0]
        assert isinstance(welcome, Welcome)
        return client

    @classmethod
    async def connect_silently(cls, server: Server) -> Client:
        return cls(*await asyncio.open_connection(server.host, server.port))

    def place_payload(self, frame: Frame) -> list[memoryview]:
        self._payload = bytearray(frame.payload_bytes)
        return [memoryview(self._payload)]

    def take_frame(self, frame: Frame) -> None:
        payload = bytes(self._payload) if frame.payload_bytes else b""
        self._replies.append((frame.request, decode(frame), payload))

    def send(self, *messages: Message) -> None:
        for number, message in enumerate(messages, 1):
            self.writer.write(encode(message, number))

    async def ask(self, message: Message) -> tuple[Message, bytes]:
        self.send(message)
        return (await self.next())[1:]

    async def next(self) -> tuple[int, Message, bytes]:
        """The next reply: its request, message and payload; EOFError where there is none."""
        while not self._replies:
            data = await self._reader.read(1 << 16)
            if not data:
                raise EOFError
            self._parser.feed(data)
        return self._replies.pop(0)

    async def next_failure(self) -> Failure:
        number, failure, _ = await self.next()
        assert number == 0
        assert isinstance(failure, Failure)
        return failure

    async def is_hung_up(self) -> bool:
        try:
            await self.next()
        except (EOFError, ConnectionError):
            return True
        return False

    async def close(self) -> None:
        self.writer.transport.abort()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass  # the server hung up first


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


class TestDoor:
    async def test_a_client_is_told_what_there_is(self, server: Server) -> None:
        client = await Client.connect_silently(server)
        welcome, _ = await client.ask(Hello(b""))
        assert welcome == Welcome(PAGE_BYTES, FrameLimits().payload_bytes_max, Capability())
        await client.close()

    async def test_garbage_is_refused_and_hung_up_on(self, server: Server) -> None:
        client = await Client.connect_silently(server)
        client.writer.write(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")
        failure = await client.next_failure()
        assert failure.code == ErrorCode.PROTOCOL
        assert "does not speak kvtier" in failure.text
        assert await client.is_hung_up()
        await client.close()

    async def test_another_version_is_told_which_one_is_spoken(self, server: Server) -> None:
        client = await Client.connect_silently(server)
        hello = bytearray(encode(Hello(b""), 1))
        hello[4] = 9
        client.writer.write(hello)
        assert "version 9 of the protocol, this side 1" in (await client.next_failure()).text
        await client.close()

    async def test_the_first_frame_must_be_a_hello(self, server: Server) -> None:
        client = await Client.connect_silently(server)
        client.send(Stat((b"a",)))
        assert (await client.next_failure()).text == "the first frame must be a HELLO"
        assert await client.is_hung_up()
        await client.close()

    async def test_a_stranger_may_send_little(self, server: Server) -> None:
        client = await Client.connect_silently(server)
        client.writer.write(encode_frame(Kind.HELLO, 1, bytes(5000)))
        assert "over the limit of 4096" in (await client.next_failure()).text
        await client.close()

    @pytest.mark.parametrize("token", ["", "sesam", "sesame "])
    async def test_a_wrong_token_is_refused(self, memory: MemoryBackend, token: str) -> None:
        server = await serve(memory, page_bytes=PAGE_BYTES, token="sesame")
        client = await Client.connect_silently(server)
        client.send(Hello(token.encode()), Stat((b"a",)))
        failure = await client.next_failure()
        assert failure.code == ErrorCode.DENIED
        assert await client.is_hung_up()
        await client.close()
        await server.close()

    async def test_who_stays_silent_is_hung_up_on(self, memory: MemoryBackend) -> None:
        limits = ServerLimits(hello_timeout_s=0.05)
        server = await serve(memory, page_bytes=PAGE_BYTES, limits=limits)
        client = await Client.connect_silently(server)
        assert (await client.next_failure()).text == "no HELLO came in time"
        assert await client.is_hung_up()
        await client.close()
        await server.close()

    async def test_more_connections_than_allowed_are_refused(self, memory: MemoryBackend) -> None:
        limits = ServerLimits(connections_max=2)
        server = await serve(memory, page_bytes=PAGE_BYTES, limits=limits)
        inside = [await Client.connect(server) for _ in range(2)]
        outside = await Client.connect_silently(server)
        assert (await outside.next_failure()).code == ErrorCode.LIMIT
        await inside.pop().close()
        while server.connections == 2:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0)
        inside.append(await Client.connect(server))
        for client in (*inside, outside):
            await client.close()
        await server.close()

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
    async def test_other_hosts_need_a_token(self, memory: MemoryBackend, host: str) -> None:
        with pytest.raises(SettingsError, match=f"serving on {host} lets other hosts in"):
            await serve(memory, host, page_bytes=PAGE_BYTES)

    async def test_with_a_token_other_hosts_may_be_let_in(self, memory: MemoryBackend) -> None:
        server = await serve(memory, "0.0.0.0", page_bytes=PAGE_BYTES, token="sesame")
        assert server.port > 0
        await server.close()

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
    async def test_loopback_needs_none(self, memory: MemoryBackend, host: str) -> None:
        server = await serve(memory, host, page_bytes=PAGE_BYTES)
        backend = await TcpBackend.open({"url": server.url}, PAGE_BYTES)
        await backend.close()
        await server.close()

    async def test_a_taken_port_is_told(self, server: Server, memory: MemoryBackend) -> None:
        with pytest.raises(BackendError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            await serve(memory, port=server.port, page_bytes=PAGE_BYTES)

    async def test_a_frame_must_have_room_for_a_page(self, memory: MemoryBackend) -> None:
        limits = ServerLimits(frame=FrameLimits(payload_bytes_max=100))
        with pytest.raises(SettingsError, match="payload_bytes_max is 100"):
            await serve(memory, page_bytes=PAGE_BYTES, limits=limits)


class TestRequests:
    async def test_only_the_pages_that_are_ok_are_sent(
        self, server: Server, memory: MemoryBackend
    ) -> None:
        pages = make_pages(b"a", 0, 4, PAGE_BYTES)
        versions = await put_objects(memory, {b"a": pages}, PAGE_BYTES)
        batch = make_extents(
            {**versions, b"gone": 5}, [(b"gone", 0, 2, 0), (b"a", 1, 2, 2), (b"a", 3, 2, 4)]
        )
        client = await Client.connect(server)
        reply, payload = await client.ask(Read(batch))
        assert isinstance(reply, ReadReply)
        expected = [PageStatus.ABSENT, PageStatus.OK, PageStatus.FAILED]
        assert reply.status.tolist() == expected
        assert payload == pages[1:3].tobytes()
        await client.close()

    async def test_a_read_beyond_the_frame_limit_is_refused_and_the_connection_lives(
        self, memory: MemoryBackend
    ) -> None:
        limits = ServerLimits(frame=FrameLimits(payload_bytes_max=4 * PAGE_BYTES))
        server = await serve(memory, page_bytes=PAGE_BYTES, limits=limits)
        client = await Client.connect(server)
        failure, _ = await client.ask(read_of(1, 5))
        assert isinstance(failure, Failure)
        assert failure.code == ErrorCode.LIMIT
        assert isinstance((await client.ask(Stat((b"a",))))[0], StatReply)
        await client.close()
        await server.close()

    async def test_a_read_of_more_pages_than_there_is_memory_is_refused(
        self, server: Server
    ) -> None:
        client = await Client.connect(server)
        failure, _ = await client.ask(read_of(1, (1 << 32) - 1))
        assert isinstance(failure, Failure)
        assert failure.code == ErrorCode.LIMIT
        await client.close()

    async def test_a_put_whose_payload_does_not_fit_is_hung_up_on(self, server: Server) -> None:
        client = await Client.connect(server)
        put = Put((b"a",), np.array([2], np.uint32))
        client.writer.write(encode(put, 1, PAGE_BYTES) + bytes(PAGE_BYTES))
        assert "a PUT of 2 pages has a payload of 512 bytes" in (await client.next_failure()).text
        assert await client.is_hung_up()
        await client.close()

    async def test_a_reply_is_no_request(self, server: Server) -> None:
        client = await Client.connect(server)
        client.send(KeysReply(0, ()))
        assert (await client.next_failure()).text == "a KeysReply is no request"
        assert await client.is_hung_up()
        await client.close()

    async def test_a_frame_beyond_the_limits_is_refused_and_hung_up_on(
        self, server: Server
    ) -> None:
        client = await Client.connect(server)
        huge = Put((b"a",), np.array([1], np.uint32))
        client.writer.write(encode(huge, 1, 1 << 40))
        assert (await client.next_failure()).code == ErrorCode.PROTOCOL
        assert await client.is_hung_up()
        await client.close()

    async def test_a_defect_of_the_backend_fails_one_request_and_is_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Defective(MemoryBackend):
            async def read(self, batch: ExtentBatch, out: U8) -> U8:
                raise ZeroDivisionError("a\ndefect")

        backend = Defective(PAGE_BYTES, None)
        server = await serve(backend, page_bytes=PAGE_BYTES)
        client = await Client.connect(server)
        with caplog.at_level(logging.ERROR):
            failure, _ = await client.ask(read_of(1, 1))
        assert failure == Failure(ErrorCode.BACKEND, "ZeroDivisionError: a defect")
        assert caplog.records[0].exc_info is not None
        assert isinstance((await client.ask(Stat((b"a",))))[0], StatReply)
        await client.close()
        await server.close()

    async def test_a_closed_backend_is_an_error_of_every_request(
        self, server: Server, memory: MemoryBackend
    ) -> None:
        client = await Client.connect(server)
        await memory.close()
        failure, _ = await client.ask(Stat((b"a",)))
        assert isinstance(failure, Failure)
        assert "closed" in failure.text
        await client.close()

    async def test_a_read_only_store_stays_so(self, memory: MemoryBackend) -> None:
        memory.capability = replace(memory.capability, writable=False, listable=False)
        server = await serve(memory, page_bytes=PAGE_BYTES)
        backend = await TcpBackend.open({"url": server.url}, PAGE_BYTES)
        assert not backend.capability.writable
        page = make_objects({b"a": make_pages(b"a", 0, 1, PAGE_BYTES)}, PAGE_BYTES)
        with pytest.raises(BackendError, match="read-only"):
            await backend.put(page)
        with pytest.raises(BackendError, match="read-only"):
            await backend.delete([b"a"])
        with pytest.raises(BackendError, match="cannot list"):
            await anext(aiter(backend.keys()))
        await backend.close()
        await server.close()

    async def test_too_many_listings_end_the_oldest(self, memory: MemoryBackend) -> None:
        objects = {b"%d" % index: make_pages(b"", 0, 1, PAGE_BYTES) for index in range(1500)}
        await put_objects(memory, objects, PAGE_BYTES)
        server = await serve(memory, page_bytes=PAGE_BYTES, limits=ServerLimits(listings_max=2))
        client = await Client.connect(server)
        begun = [(await client.ask(Keys(0)))[0] for _ in range(3)]
        cursors = [reply.cursor for reply in begun if isinstance(reply, KeysReply)]
        oldest, *others = [(await client.ask(Keys(cursor)))[0] for cursor in cursors]
        assert isinstance(oldest, Failure)
        for reply in others:
            assert isinstance(reply, KeysReply)
            assert (reply.cursor, len(reply.keys)) == (0, 1500 - 1024)
        await client.close()
        await server.close()


class TestBounds:
    async def test_no_more_is_begun_than_may_be_in_flight(self, gated: GatedBackend) -> None:
        versions = await put_objects(
            gated, {b"a": make_pages(b"a", 0, 100, PAGE_BYTES)}, PAGE_BYTES
        )
        limits = ServerLimits(inflight_bytes_max=5 * 100 * PAGE_BYTES)
        server = await serve(gated, page_bytes=PAGE_BYTES, limits=limits)
        client = await Client.connect(server)
        client.send(*[read_of(versions[b"a"], 100)] * 500)
        other = await Client.connect(server)
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
        client = await Client.connect_silently(server)
        client.writer.transport.pause_reading()
        client.send(Hello(b""), *[read_of(versions[b"a"], 2000)] * 200)
        other = await Client.connect(server)
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
        client = await Client.connect(server)
        client.send(*[read_of(1, 1)] * 2000)
        other = await Client.connect(server)
        for _ in range(20):
            await other.ask(Stat((b"a",)))
        assert 1 <= gated.reads_begun <= 25
        await client.close()
        await other.close()
        await server.close()


class TestEnding:
    async def test_a_client_that_leaves_cancels_what_it_asked(self, gated: GatedBackend) -> None:
        server = await serve(gated, page_bytes=PAGE_BYTES)
        client = await Client.connect(server)
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
        client = await Client.connect(server)
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
        clients = [await Client.connect(server) for _ in range(3)]
        async with asyncio.timeout(2):
            await server.close(grace_s=60)
        for client in clients:
            assert await client.is_hung_up()
            await client.close()


class TestService:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    async def test_a_signal_ends_it(self, memory: MemoryBackend, number: signal.Signals) -> None:
        async def stop_when_ready(host: str, port: int) -> None:
            backend = await TcpBackend.open({"url": f"tcp://{host}:{port}"}, PAGE_BYTES)
            await backend.close()
            os.kill(os.getpid(), number)

        clients: list[asyncio.Task[None]] = []
        await run_server(
            memory,
            "127.0.0.1",
            0,
            page_bytes=PAGE_BYTES,
            ready=lambda host, port: clients.append(
                asyncio.create_task(stop_when_ready(host, port))
            ),
        )
        await clients[0]
        assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)

    async def test_cancelling_it_ends_it(self, memory: MemoryBackend) -> None:
        ready: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        service = asyncio.create_task(
            run_server(
                memory,
                "127.0.0.1",
                0,
                page_bytes=PAGE_BYTES,
                ready=lambda host, port: ready.set_result((host, port)),
            )
        )
        host, port = await ready
        service.cancel()
        await asyncio.wait([service])
        assert service.cancelled()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, port)

    async def test_it_opens_the_origin_that_settings_name(self) -> None:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        origin = OriginSettings("memory", {"capacity_bytes": 1 << 20})
        service = asyncio.create_task(
            run(
                origin,
                "127.0.0.1",
                0,
                lambda host, port: ready.set_result(f"tcp://{host}:{port}"),
                PAGE_BYTES,
            )
        )
        backend = await TcpBackend.open({"url": await ready}, PAGE_BYTES)
        await put_objects(backend, {b"a": make_pages(b"a", 0, 1, PAGE_BYTES)}, PAGE_BYTES)
        await backend.close()
        service.cancel()
        await asyncio.wait([service])
