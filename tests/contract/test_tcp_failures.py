"""What the tcp backend does when the other side is gone, silent, strange or slow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio
from kvtier_memory import MemoryBackend
from kvtier_tcp import TcpBackend
from kvtier_tcp.address import parse_address
from kvtier_tcp.connection import connect

from kvtier.backend import API_VERSION, Capability, ExtentBatch, ObjectStats
from kvtier.errors import BackendError, ClosedError, SettingsError
from kvtier.pages import U8, PageStatus
from kvtier.server import Server, ServerLimits, Tokens, serve
from kvtier.testing.batches import make_extents, put_objects, read_objects
from kvtier.testing.pages import make_pages
from kvtier.testing.peer import Peer
from kvtier.wire.codec import encode
from kvtier.wire.messages import (
    Hello,
    Message,
    Put,
    PutReply,
    Read,
    ReadReply,
    Stat,
    StatReply,
    Welcome,
)

PAGE_BYTES = 512
PAGES = make_pages(b"a", 0, 256, PAGE_BYTES)
WELCOME = Welcome(PAGE_BYTES, 1 << 20, Capability(), 4096)

pytestmark = pytest.mark.asyncio


async def welcome(client: Peer, answer: Welcome = WELCOME) -> None:
    number, message, _ = await client.next()
    assert isinstance(message, Hello)
    await client.send_bytes(encode(answer, number))


Script = Callable[[Peer], Awaitable[None]]


@contextlib.asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[str]:
    """A server on loopback whose every connection follows ``script``; yields its url."""
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            await script(Peer(reader, writer))
        except (EOFError, ConnectionError, asyncio.CancelledError):
            pass  # the client hung up, or the test is over
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers)


async def silence(client: Peer) -> None:
    """Take everything, answer nothing."""
    while True:
        await client.next()


def one_extent(pages: int = len(PAGES)) -> ExtentBatch:
    return make_extents({b"a": 1}, [(b"a", 0, pages, 0)])


def rows(count: int = len(PAGES)) -> U8:
    return np.zeros((count, PAGE_BYTES), np.uint8)


async def open_tcp(url: str, **options: object) -> TcpBackend:
    return await TcpBackend.open({"url": url, "connections": 1, **options}, PAGE_BYTES)


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


class TestOpening:
    async def test_nobody_listening_is_told_with_what_to_do(self) -> None:
        with socket.socket() as taken:  # bound and not listening: nobody else gets the port
            taken.bind(("127.0.0.1", 0))
            url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(BackendError) as caught:
                await open_tcp(url)
        expected = f"origin {url}: connection refused: is `kvtier serve` running there?"
        assert str(caught.value) == expected

    async def test_a_frozen_server_is_given_up_in_time(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as frozen:  # accepts nothing, ever
            url = f"tcp://127.0.0.1:{frozen.getsockname()[1]}"
            with pytest.raises(BackendError, match=r"no answer within 0\.2 s"):
                await open_tcp(url, connect_timeout_s=0.2)

    async def test_pages_of_another_size_are_refused(self, server: Server) -> None:
        with pytest.raises(BackendError, match="set page_bytes to 512"):
            await TcpBackend.open({"url": server.url}, 4096)

    async def test_another_interface_is_refused(self) -> None:
        other = replace(WELCOME, capability=Capability(api_version=API_VERSION + 1))
        async with scripted(lambda client: welcome(client, other)) as url:
            with pytest.raises(BackendError, match="install versions that fit"):
                await open_tcp(url)

    async def test_a_server_of_something_else_is_refused(self) -> None:
        async with scripted(
            lambda client: client.send_bytes(b"HTTP/1.1 400 Bad Request\r\n" * 9)
        ) as url:
            with pytest.raises(BackendError, match="does not speak kvtier"):
                await open_tcp(url)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "127.0.0.1:7000",
            "http://127.0.0.1:7000",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:70000",
            "tcp://:7000",
            "tcp://[::1:7000",
            "tcp://host:7000/path",
            "tcp://user@host:7000",
        ],
    )
    async def test_a_wrong_url_is_refused(self, url: str) -> None:
        with pytest.raises(SettingsError, match="tls://HOST:PORT"):
            await open_tcp(url)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "needs the option 'url'"),
            ({"uri": "tcp://h:1"}, "did you mean 'url'"),
            ({"url": "tcp://h:1", "connections": 0}, "connections"),
            ({"url": "tcp://h:1", "connections": 1.5}, "connections"),
            ({"url": "tcp://h:1", "timeout_s": 0}, "timeout_s"),
            ({"url": "tcp://h:1", "connect_timeout_s": "5 s"}, "connect_timeout_s"),
        ],
    )
    async def test_a_wrong_option_is_refused(
        self, options: dict[str, object], message: str
    ) -> None:
        with pytest.raises(SettingsError, match=message):
            await TcpBackend.open(options, PAGE_BYTES)

    async def test_a_token_opens_the_door(self, memory: MemoryBackend) -> None:
        tokens, limits = Tokens.of({"open sesame": ""}), ServerLimits(denial_delay_s=0.01)
        server = await serve(memory, page_bytes=PAGE_BYTES, tokens=tokens, limits=limits)
        for token in ("", "open", "öpen sesame"):
            with pytest.raises(BackendError, match="token is missing or wrong"):
                await open_tcp(server.url, token=token)
        await (await open_tcp(server.url, token="open sesame")).close()
        await server.close()


class TestLosing:
    async def test_a_lost_connection_ends_what_waits_for_it(self) -> None:
        async def leave(client: Peer) -> None:
            await welcome(client)
            await client.next()

        async with scripted(leave) as url:
            backend = await open_tcp(url)
            with pytest.raises(BackendError, match="connection lost"):
                await backend.read(one_extent(), rows())
            await backend.close()

    async def test_the_next_call_connects_again(self, memory: MemoryBackend) -> None:
        server = await serve(memory, page_bytes=PAGE_BYTES)
        backend = await open_tcp(server.url)
        await put_objects(backend, {b"a": PAGES}, PAGE_BYTES)
        await server.close()
        with pytest.raises(BackendError):
            await backend.stat([b"a"])
        again = await serve(memory, port=server.port, page_bytes=PAGE_BYTES)
        found = await read_objects(backend, [b"a"], PAGE_BYTES)
        np.testing.assert_array_equal(found[b"a"], PAGES)
        await backend.close()
        await again.close()

    async def test_a_dead_server_refuses_every_call_at_once(self, server: Server) -> None:
        backend = await open_tcp(server.url)
        await server.close()
        calls = [backend.stat([b"a"]) for _ in range(20)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, BackendError) for result in results)
        await backend.close()

    async def test_a_silent_server_is_given_up_after_the_timeout(self) -> None:
        async def only_welcome(client: Peer) -> None:
            await welcome(client)
            await silence(client)

        async with scripted(only_welcome) as url:
            backend = await open_tcp(url, timeout_s=0.2)
            with pytest.raises(BackendError, match=r"no answer within 0\.2 s"):
                await backend.read(one_extent(), rows())
            await backend.close()

    async def test_a_server_that_is_silent_until_its_callers_leave_is_given_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kvtier_tcp.connection._SILENT_S", 0.05)
        connections = 0

        async def only_welcome(client: Peer) -> None:
            nonlocal connections
            connections += 1
            await welcome(client)
            await silence(client)

        async with scripted(only_welcome) as url:
            backend = await open_tcp(url)
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await backend.read(one_extent(), rows())
            assert connections == 2
            for _ in range(2):  # who leaves sooner says nothing of the server
                read = asyncio.ensure_future(backend.read(one_extent(), rows()))
                await asyncio.sleep(0)
                read.cancel()
                await asyncio.wait([read])
            assert connections <= 3
            await backend.close()

    async def test_a_slow_answer_does_not_end_the_connection(self) -> None:
        connections = 0

        async def answer_stats(client: Peer) -> None:
            nonlocal connections
            connections += 1
            await welcome(client)
            while True:
                _, message, _ = await client.next()
                if isinstance(message, Stat):
                    await client.send_bytes(encode(ReadReply(np.zeros(0, np.uint8)), 999))

        async with scripted(answer_stats) as url:
            backend = await open_tcp(url, timeout_s=0.3)
            for _ in range(2):  # bytes arrive, though not the answer: slow, not dead
                with pytest.raises(BackendError, match="no answer"):
                    await backend.stat([b"a"])
            assert connections == 1
            await backend.close()

    async def test_close_ends_what_waits(self) -> None:
        asked = asyncio.Event()

        async def only_welcome(client: Peer) -> None:
            await welcome(client)
            await client.next()
            asked.set()
            await silence(client)

        async with scripted(only_welcome) as url:
            backend = await open_tcp(url)
            read = asyncio.ensure_future(backend.read(one_extent(), rows()))
            await asked.wait()
            await backend.close()
            with pytest.raises(ClosedError):
                await read


class TestAsking:
    async def test_a_read_of_nothing_asks_nobody(self, server: Server) -> None:
        backend = await open_tcp(server.url)
        await server.close()
        assert len(await backend.read(make_extents({b"a": 1}, []), rows(0))) == 0
        await backend.close()

    async def test_a_short_deadline_does_not_wait_for_a_longer_one(self) -> None:
        async def only_welcome(client: Peer) -> None:
            await welcome(client)
            await silence(client)

        async with scripted(only_welcome) as url:
            connection = await connect(parse_address({"url": url}), PAGE_BYTES, 5.0)
            patient = asyncio.ensure_future(connection.ask(Stat((b"a",)), StatReply, 30.0))
            await asyncio.sleep(0)
            with pytest.raises(BackendError, match=r"no answer within 0\.1 s"):
                await connection.ask(Stat((b"a",)), StatReply, 0.1)
            with pytest.raises(BackendError, match="stopped answering"):
                await patient
            await connection.close(ClosedError, "over")

    async def test_a_deadline_of_less_than_a_millisecond_hinders_no_other_request(self) -> None:
        async def only_welcome(client: Peer) -> None:
            await welcome(client)
            await silence(client)

        async with scripted(only_welcome) as url:
            connection = await connect(parse_address({"url": url}), PAGE_BYTES, 5.0)
            hasty, patient = (
                asyncio.ensure_future(connection.ask(Stat((b"a",)), StatReply, timeout_s))
                for timeout_s in (0.0002, 30.0)
            )
            with pytest.raises(BackendError, match=r"no answer within 0\.0002 s"):
                await hasty
            with pytest.raises(BackendError, match="stopped answering"):
                await patient
            await connection.close(ClosedError, "over")

    async def test_what_its_caller_left_before_it_could_be_sent_is_not_sent(self) -> None:
        reading = asyncio.Event()
        asked: list[Message] = []

        async def read_late(client: Peer) -> None:
            await welcome(client)
            await reading.wait()
            while True:
                number, message, _ = await client.next()
                asked.append(message)
                if isinstance(message, Stat):
                    stats = ObjectStats(np.zeros(1, np.int64), np.zeros(1, np.uint64))
                    await client.send_bytes(encode(StatReply(stats), number))

        async with scripted(read_late) as url:
            connection = await connect(parse_address({"url": url}), PAGE_BYTES, 5.0)
            payload = bytes(64 << 20)  # more than the system takes of what nobody reads
            put = Put((b"large",), np.array([len(payload) // PAGE_BYTES], np.uint32))
            large = asyncio.ensure_future(connection.ask(put, PutReply, 30.0, payload=payload))
            await asyncio.sleep(0)
            left = asyncio.ensure_future(connection.ask(Stat((b"left",)), StatReply, 30.0))
            await asyncio.sleep(0)
            left.cancel()
            last = asyncio.ensure_future(connection.ask(Stat((b"last",)), StatReply, 30.0))
            await asyncio.sleep(0)
            reading.set()
            await last
            assert [type(message) for message in asked] == [Put, Stat]
            assert asked[1] == Stat((b"last",))
            large.cancel()
            await asyncio.wait([large, left])
            await connection.close(ClosedError, "over")

    async def test_who_leaves_a_server_that_reads_nothing_leaves_nothing_behind(self) -> None:
        async def read_nothing(client: Peer) -> None:
            await welcome(client)
            await asyncio.Event().wait()

        async with scripted(read_nothing) as url:
            connection = await connect(parse_address({"url": url}), PAGE_BYTES, 5.0)
            payload = bytes(64 << 20)  # more than the system takes of what nobody reads
            put = Put((b"large",), np.array([len(payload) // PAGE_BYTES], np.uint32))
            large = asyncio.ensure_future(connection.ask(put, PutReply, 30.0, payload=payload))
            await asyncio.sleep(0)
            stat = Stat(tuple(number.to_bytes(1024, "little") for number in range(1, 1025)))
            tracemalloc.start()
            for _ in range(16):
                left = asyncio.ensure_future(connection.ask(stat, StatReply, 30.0))
                await asyncio.sleep(0)
                left.cancel()
                await asyncio.wait([left])
            held_bytes, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert held_bytes < 4 << 20  # of 16 MiB of requests
            large.cancel()
            await asyncio.wait([large])
            await connection.close(ClosedError, "over")


class TestAnswers:
    @pytest.mark.parametrize(
        "reply",
        [
            encode(ReadReply(np.zeros(2, np.uint8)), 2, PAGE_BYTES),
            encode(ReadReply(np.zeros(1, np.uint8)), 2, 2 * PAGE_BYTES),
            encode(ReadReply(np.zeros(1, np.uint8)), 2, 0),
            encode(ReadReply(np.array([PageStatus.ABSENT], np.uint8)), 2, PAGE_BYTES),
            encode(Stat((b"a",)), 2),
            b"\x00" * 64,
        ],
        ids=["statuses", "too long", "too short", "absent", "another kind", "garbage"],
    )
    async def test_a_senseless_answer_is_an_error(self, reply: bytes) -> None:
        async def answer(client: Peer) -> None:
            await welcome(client)
            await client.next()
            await client.send_bytes(reply)
            await silence(client)

        async with scripted(answer) as url:
            backend = await open_tcp(url)
            with pytest.raises(BackendError):
                await backend.read(one_extent(1), rows(1))
            await backend.close()

    async def test_an_answer_in_pieces_is_put_together(self) -> None:
        reply = encode(ReadReply(np.zeros(1, np.uint8)), 2, PAGES.nbytes) + PAGES.tobytes()

        async def answer(client: Peer) -> None:
            await welcome(client)
            await client.next()
            for start in range(0, len(reply), 1009):
                await client.send_bytes(reply[start : start + 1009])
            await silence(client)

        async with scripted(answer) as url:
            backend = await open_tcp(url)
            out = rows()
            assert (await backend.read(one_extent(), out)).tolist() == [PageStatus.OK]
            np.testing.assert_array_equal(out, PAGES)
            await backend.close()

    @pytest.mark.parametrize("extent_pages", [len(PAGES), 1], ids=["in place", "scattered"])
    async def test_the_rest_of_a_cancelled_answer_is_thrown_away(self, extent_pages: int) -> None:
        half_sent, cancelled = asyncio.Event(), asyncio.Event()

        async def answer(client: Peer) -> None:
            await welcome(client)
            number, message, _ = await client.next()
            assert isinstance(message, Read)
            status = np.zeros(len(message.batch), np.uint8)
            reply = encode(ReadReply(status), number, PAGES.nbytes) + PAGES.tobytes()
            await client.send_bytes(reply[: len(reply) // 2])
            half_sent.set()
            await cancelled.wait()
            await client.send_bytes(reply[len(reply) // 2 :])
            number, _, _ = await client.next()
            await client.send_bytes(encode(ReadReply(np.zeros(1, np.uint8)), number, PAGE_BYTES))
            await client.send_bytes(PAGES[7].tobytes())
            await silence(client)

        count = len(PAGES)
        spread = [
            (b"a", page, extent_pages, count - page - extent_pages)
            for page in range(0, count, extent_pages)
        ]
        async with scripted(answer) as url:
            backend = await open_tcp(url)
            out = rows()
            read = asyncio.ensure_future(backend.read(make_extents({b"a": 1}, spread), out))
            await half_sent.wait()
            while extent_pages > 1 and not out.any():  # noqa: ASYNC110 - memory tells nobody
                await asyncio.sleep(0)
            read.cancel()
            await asyncio.wait([read])
            before = out.copy()
            cancelled.set()
            other = rows(1)
            assert (await backend.read(one_extent(1), other)).tolist() == [PageStatus.OK]
            np.testing.assert_array_equal(other[0], PAGES[7])
            np.testing.assert_array_equal(out, before)
            await backend.close()
