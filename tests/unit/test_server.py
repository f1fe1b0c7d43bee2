from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio
from kvtier_memory import MemoryBackend
from kvtier_tcp import TcpBackend
from server_peers import connect, failure_of, knock

from kvtier.backend import Capability, ExtentBatch
from kvtier.errors import BackendError, SettingsError
from kvtier.pages import U8, PageStatus
from kvtier.server import Server, ServerLimits, Tokens, serve
from kvtier.testing.batches import make_extents, make_objects, put_objects
from kvtier.testing.pages import make_pages
from kvtier.wire.codec import ITEMS_MAX, encode
from kvtier.wire.frames import FrameLimits, Kind, encode_frame
from kvtier.wire.messages import (
    ErrorCode,
    Failure,
    Hello,
    Keys,
    KeysReply,
    Put,
    Read,
    ReadReply,
    Stat,
    StatReply,
    Welcome,
)

PAGE_BYTES = 512
SESAME = Tokens.of({"sesame": ""})

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def memory() -> AsyncIterator[MemoryBackend]:
    backend = await MemoryBackend.open({}, PAGE_BYTES)
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
        client = await knock(server)
        welcome, _ = await client.ask(Hello(b""))
        capability = Capability(object_pages_max=(64 << 30) // PAGE_BYTES)
        assert welcome == Welcome(
            PAGE_BYTES, FrameLimits().payload_bytes_max, capability, ITEMS_MAX
        )
        await client.close()

    async def test_garbage_is_refused_and_hung_up_on(self, server: Server) -> None:
        client = await knock(server)
        client.writer.write(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")
        failure = await failure_of(client)
        assert failure.code == ErrorCode.PROTOCOL
        assert "does not speak kvtier" in failure.text
        assert await client.is_hung_up()
        await client.close()

    async def test_another_version_is_told_which_one_is_spoken(self, server: Server) -> None:
        client = await knock(server)
        hello = bytearray(encode(Hello(b""), 1))
        hello[4] = 9
        client.writer.write(hello)
        assert "version 9 of the protocol, this side 1" in (await failure_of(client)).text
        await client.close()

    async def test_the_first_frame_must_be_a_hello(self, server: Server) -> None:
        client = await knock(server)
        client.send(Stat((b"a",)))
        assert (await failure_of(client)).text == "the first frame must be a HELLO"
        assert await client.is_hung_up()
        await client.close()

    async def test_a_stranger_may_send_little(self, server: Server) -> None:
        client = await knock(server)
        client.writer.write(encode_frame(Kind.HELLO, 1, bytes(5000)))
        assert "over the limit of 4096" in (await failure_of(client)).text
        await client.close()

    @pytest.mark.parametrize("token", ["", "sesam", "sesame "])
    async def test_a_wrong_token_is_refused(self, memory: MemoryBackend, token: str) -> None:
        limits = ServerLimits(denial_delay_s=0.01)
        server = await serve(memory, page_bytes=PAGE_BYTES, tokens=SESAME, limits=limits)
        client = await knock(server)
        client.send(Hello(token.encode()), Stat((b"a",)))
        failure = await failure_of(client)
        assert failure.code == ErrorCode.DENIED
        assert await client.is_hung_up()
        await client.close()
        await server.close()

    async def test_who_stays_silent_is_hung_up_on(self, memory: MemoryBackend) -> None:
        limits = ServerLimits(hello_timeout_s=0.05)
        server = await serve(memory, page_bytes=PAGE_BYTES, limits=limits)
        client = await knock(server)
        assert (await failure_of(client)).text == "no HELLO came in time"
        assert await client.is_hung_up()
        await client.close()
        await server.close()

    async def test_more_connections_than_allowed_are_refused(self, memory: MemoryBackend) -> None:
        limits = ServerLimits(connections_max=2)
        server = await serve(memory, page_bytes=PAGE_BYTES, limits=limits)
        inside = [await connect(server) for _ in range(2)]
        outside = await knock(server)
        assert (await failure_of(outside)).code == ErrorCode.LIMIT
        await inside.pop().close()
        while server.connections == 2:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0)
        inside.append(await connect(server))
        for client in (*inside, outside):
            await client.close()
        await server.close()

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
    async def test_other_hosts_need_a_token(self, memory: MemoryBackend, host: str) -> None:
        with pytest.raises(SettingsError, match=f"serving on {host} lets other hosts in"):
            await serve(memory, host, page_bytes=PAGE_BYTES)

    async def test_with_a_token_other_hosts_may_be_let_in(self, memory: MemoryBackend) -> None:
        server = await serve(
            memory, "0.0.0.0", page_bytes=PAGE_BYTES, tokens=SESAME, cleartext=True
        )
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

    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            (ServerLimits(frame=FrameLimits(payload_bytes_max=100)), "payload_bytes_max is 100"),
            (ServerLimits(upload_bytes_max=100), "upload_bytes_max is 100"),
            (ServerLimits(uploads_max=0), "uploads_max is 0"),
        ],
    )
    async def test_limits_that_let_nothing_through_are_refused(
        self, memory: MemoryBackend, limits: ServerLimits, message: str
    ) -> None:
        with pytest.raises(SettingsError, match=message):
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
        client = await connect(server)
        reply, payload = await client.ask(Read(batch))
        assert isinstance(reply, ReadReply)
        expected = [PageStatus.ABSENT, PageStatus.OK, PageStatus.ABSENT]
        assert reply.status.tolist() == expected
        assert payload == pages[1:3].tobytes()
        await client.close()

    async def test_a_read_beyond_the_frame_limit_is_refused_and_the_connection_lives(
        self, memory: MemoryBackend
    ) -> None:
        limits = ServerLimits(frame=FrameLimits(payload_bytes_max=4 * PAGE_BYTES))
        server = await serve(memory, page_bytes=PAGE_BYTES, limits=limits)
        client = await connect(server)
        failure, _ = await client.ask(read_of(1, 5))
        assert isinstance(failure, Failure)
        assert failure.code == ErrorCode.LIMIT
        assert isinstance((await client.ask(Stat((b"a",))))[0], StatReply)
        await client.close()
        await server.close()

    async def test_a_read_of_more_pages_than_there_is_memory_is_refused(
        self, server: Server
    ) -> None:
        client = await connect(server)
        failure, _ = await client.ask(read_of(1, (1 << 32) - 1))
        assert isinstance(failure, Failure)
        assert failure.code == ErrorCode.LIMIT
        await client.close()

    async def test_a_put_whose_payload_does_not_fit_is_hung_up_on(self, server: Server) -> None:
        client = await connect(server)
        put = Put((b"a",), np.array([2], np.uint32))
        client.writer.write(encode(put, 1, PAGE_BYTES) + bytes(PAGE_BYTES))
        assert "a PUT of 2 pages has a payload of 512 bytes" in (await failure_of(client)).text
        assert await client.is_hung_up()
        await client.close()

    async def test_a_reply_is_no_request(self, server: Server) -> None:
        client = await connect(server)
        client.send(KeysReply(0, ()))
        assert (await failure_of(client)).text == "a KeysReply is no request"
        assert await client.is_hung_up()
        await client.close()

    async def test_a_frame_beyond_the_limits_is_refused_and_hung_up_on(
        self, server: Server
    ) -> None:
        client = await connect(server)
        huge = Put((b"a",), np.array([1], np.uint32))
        client.writer.write(encode(huge, 1, 1 << 40))
        assert (await failure_of(client)).code == ErrorCode.PROTOCOL
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
        client = await connect(server)
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
        client = await connect(server)
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
        client = await connect(server)
        begun = [(await client.ask(Keys(0)))[0] for _ in range(3)]
        cursors = [reply.cursor for reply in begun if isinstance(reply, KeysReply)]
        oldest, *others = [(await client.ask(Keys(cursor)))[0] for cursor in cursors]
        assert isinstance(oldest, Failure)
        for reply in others:
            assert isinstance(reply, KeysReply)
            assert (reply.cursor, len(reply.keys)) == (0, 1500 - 1024)
        await client.close()
        await server.close()
