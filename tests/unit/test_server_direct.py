"""Reads that a server answers out of the memory of its backend, and those that it does not."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from kvtier_memory import MemoryBackend
from kvtier_tcp import TcpBackend
from server_peers import connect

from kvtier.backend import ExtentBatch, ResidentBackend
from kvtier.errors import BackendError
from kvtier.pages import U8, PageStatus
from kvtier.server import ServerLimits, Tokens, serve
from kvtier.server.counting import ServerCounters
from kvtier.server.direct import DirectReads, locate_of
from kvtier.server.tenants import tenant_view
from kvtier.testing.batches import make_extents, put_objects
from kvtier.testing.pages import make_pages
from kvtier.wire.messages import Read, ReadReply
from kvtier.wrappers.wrapper import Wrapper

PAGE_BYTES = 512
PAGES = 4096
OBJECT = make_pages(b"a", 0, PAGES, PAGE_BYTES)
FRAME_HEAD_BYTES = 40

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def memory() -> AsyncIterator[MemoryBackend]:
    backend = await MemoryBackend.open({}, PAGE_BYTES)
    yield backend
    await backend.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ExtentBatch]:
    """The reads that were not answered directly."""
    batches: list[ExtentBatch] = []
    read = ResidentBackend.read

    async def noting(self: ResidentBackend, batch: ExtentBatch, out: U8) -> U8:
        batches.append(batch)
        return await read(self, batch, out)

    monkeypatch.setattr(ResidentBackend, "read", noting)
    return batches


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection whose kernel takes little at once; its first end does not block."""
    first, second = socket.socketpair()
    with first, second:
        first.setblocking(False)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield first, second


@pytest.fixture
def nowhere() -> Iterator[int]:
    """A descriptor that takes everything."""
    fd = os.open(os.devnull, os.O_WRONLY)
    yield fd
    os.close(fd)


def direct_to(
    fd: int, memory: MemoryBackend, counters: ServerCounters | None = None
) -> DirectReads:
    locate = locate_of(memory)
    assert locate is not None
    return DirectReads(fd, locate, memory, PAGE_BYTES, ServerLimits(), counters or ServerCounters())


async def put(memory: MemoryBackend, pages: U8 = OBJECT) -> dict[bytes, int]:
    return await put_objects(memory, {b"a": pages}, PAGE_BYTES)


def pages_of(known: dict[bytes, int], *runs: tuple[int, int]) -> ExtentBatch:
    """Runs of pages of the one object: first page and count."""
    return make_extents(known, [(b"a", first, count, 0) for first, count in runs])


class TestServer:
    async def test_pages_come_in_the_order_in_which_they_were_asked_for(
        self, memory: MemoryBackend, asked: list[ExtentBatch]
    ) -> None:
        known = await put(memory)
        server = await serve(memory, page_bytes=PAGE_BYTES)
        client = await connect(server)
        reply, payload = await client.ask(Read(pages_of(known, (7, 2), (9, 1), (3, 1), (4000, 96))))
        assert isinstance(reply, ReadReply)
        assert reply.status.tolist() == [PageStatus.OK] * 4
        assert payload == OBJECT[[7, 8, 9, 3, *range(4000, 4096)]].tobytes()
        assert asked == []
        await client.close()
        await server.close()

    async def test_what_is_not_all_there_is_answered_by_the_backend(
        self, memory: MemoryBackend, asked: list[ExtentBatch]
    ) -> None:
        known = await put(memory)
        server = await serve(memory, page_bytes=PAGE_BYTES)
        client = await connect(server)
        reply, payload = await client.ask(Read(pages_of(known, (0, 1), (PAGES - 1, 2))))
        assert isinstance(reply, ReadReply)
        assert reply.status.tolist() == [PageStatus.OK, PageStatus.ABSENT]
        assert payload == OBJECT[:1].tobytes()
        await put(memory, OBJECT[::-1])
        reply, payload = await client.ask(Read(pages_of(known, (0, 1))))
        assert isinstance(reply, ReadReply)
        assert reply.status.tolist() == [PageStatus.ABSENT]
        assert payload == b""
        assert len(asked) == 2
        await client.close()
        await server.close()

    async def test_more_pieces_than_one_call_takes_are_answered_by_the_backend(
        self, memory: MemoryBackend, asked: list[ExtentBatch]
    ) -> None:
        known = await put(memory)
        server = await serve(memory, page_bytes=PAGE_BYTES)
        client = await connect(server)
        for count in (1023, 1024):
            batch = pages_of(known, *((page, 1) for page in range(0, 2 * count, 2)))
            _, payload = await client.ask(Read(batch))
            assert payload == OBJECT[: 2 * count : 2].tobytes()
        assert [len(batch) for batch in asked] == [1024]
        await client.close()
        await server.close()

    async def test_a_client_that_reads_late_gets_all_and_counts_until_then(
        self, memory: MemoryBackend, asked: list[ExtentBatch]
    ) -> None:
        known = await put(memory)
        server = await serve(memory, page_bytes=PAGE_BYTES)
        client = await connect(server)
        starts = range(16)
        client.send(*(Read(pages_of(known, (start, PAGES - start))) for start in starts))
        while server.gauges()["kvtier_held_bytes"] == 0:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0)
        received = {number: payload for number, _, payload in [await client.next() for _ in starts]}
        for number, start in enumerate(starts, 1):
            assert received[number] == OBJECT[start:].tobytes()
        assert 0 < len(asked) < len(starts)
        while server.gauges()["kvtier_held_bytes"]:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert server.gauges()["kvtier_inflight_requests"] == 0
        await client.close()
        await server.close()

    async def test_each_tenant_gets_its_own_pages(
        self, memory: MemoryBackend, asked: list[ExtentBatch]
    ) -> None:
        server = await serve(
            memory, page_bytes=PAGE_BYTES, tokens=Tokens.of({"one": "a", "two": "b"})
        )
        known: dict[str, dict[bytes, int]] = {}
        for token, pages in (("one", OBJECT[:4]), ("two", OBJECT[4:8])):
            backend = await TcpBackend.open({"url": server.url, "token": token}, PAGE_BYTES)
            known[token] = await put_objects(backend, {b"a": pages}, PAGE_BYTES)
            await backend.close()
        for token, pages in (("one", OBJECT[:4]), ("two", OBJECT[4:8])):
            client = await connect(server, token)
            _, payload = await client.ask(Read(pages_of(known[token], (0, 4))))
            assert payload == pages.tobytes()
            await client.close()
        assert asked == []
        client = await connect(server, "two")
        reply, _ = await client.ask(Read(pages_of(known["one"], (0, 4))))
        assert isinstance(reply, ReadReply)
        assert reply.status.tolist() == [PageStatus.ABSENT]
        await client.close()
        await server.close()

    async def test_requests_and_bytes_are_counted(
        self, memory: MemoryBackend, asked: list[ExtentBatch]
    ) -> None:
        known = await put(memory)
        server = await serve(memory, page_bytes=PAGE_BYTES)
        client = await connect(server)
        before_bytes = server.counters.sent_bytes
        await client.ask(Read(pages_of(known, (0, 8))))
        assert server.counters.sent_bytes - before_bytes == FRAME_HEAD_BYTES + 1 + 8 * PAGE_BYTES
        text = server.counters.exposition({})
        assert 'kvtier_requests_total{kind="Read",status="ok"} 1' in text
        assert 'kvtier_request_seconds_count{kind="Read"} 1' in text
        assert asked == []
        await client.close()
        await server.close()

    async def test_a_closed_backend_fails_the_read_and_not_the_connection(
        self, memory: MemoryBackend
    ) -> None:
        known = await put(memory)
        server = await serve(memory, page_bytes=PAGE_BYTES)
        backend = await TcpBackend.open({"url": server.url}, PAGE_BYTES)
        await memory.close()
        out = np.empty((1, PAGE_BYTES), np.uint8)
        for _ in range(2):
            with pytest.raises(BackendError, match="closed"):
                await backend.read(pages_of(known, (0, 1)), out)
        await backend.close()
        await server.close()


class TestWhoIsAsked:
    async def test_a_store_that_reads_in_its_own_way_is_asked(self) -> None:
        class Own(MemoryBackend):
            async def read(self, batch: ExtentBatch, out: U8) -> U8:
                return np.full(len(batch), PageStatus.FAILED, np.uint8)

        assert locate_of(Own(PAGE_BYTES, None)) is None

    async def test_what_is_wrapped_is_asked(self, memory: MemoryBackend) -> None:
        class Around(Wrapper):
            @classmethod
            async def open(cls, options: Mapping[str, Any], page_bytes: int) -> Around:
                raise NotImplementedError

        assert locate_of(Around(memory)) is None
        assert locate_of(tenant_view(Around(memory), "a")) is None
        assert locate_of(tenant_view(memory, "a")) is not None


class TestDirectReads:
    @pytest.mark.parametrize("counts", [(30,), (1,) * 30, (3, 1, 20, 6)])
    async def test_what_the_kernel_does_not_take_is_handed_back(
        self,
        memory: MemoryBackend,
        ends: tuple[socket.socket, socket.socket],
        counts: tuple[int, ...],
    ) -> None:
        known, counters = await put(memory), ServerCounters()
        # Every other page, so that no two runs are one.
        firsts = np.cumsum([0, *(count + 1 for count in counts)])[:-1].tolist()
        runs = list(zip(firsts, counts, strict=True))
        rest = direct_to(ends[0].fileno(), memory, counters).answer(
            7, pages_of(known, *runs), sum(counts) * PAGE_BYTES
        )
        assert rest is not None
        assert 0 < len(rest) < sum(counts) * PAGE_BYTES
        ends[0].shutdown(socket.SHUT_WR)
        sent = b"".join(iter(lambda: ends[1].recv(1 << 16), b""))
        assert counters.sent_bytes == len(sent)
        whole = (sent + rest.tobytes())[FRAME_HEAD_BYTES + len(runs) :]
        assert whole == b"".join(OBJECT[first : first + count].tobytes() for first, count in runs)

    async def test_a_kernel_that_takes_nothing_is_left_to_the_transport(
        self, memory: MemoryBackend, ends: tuple[socket.socket, socket.socket]
    ) -> None:
        known = await put(memory)
        direct = direct_to(ends[0].fileno(), memory)
        batch = pages_of(known, (0, 8))
        while (rest := direct.answer(1, batch, 8 * PAGE_BYTES)) is not None:
            assert len(rest) in range(8 * PAGE_BYTES)
        ends[1].close()
        assert direct.answer(1, batch, 8 * PAGE_BYTES) is None

    async def test_others_have_their_turn_after_four_mebibytes(
        self, memory: MemoryBackend, nowhere: int
    ) -> None:
        known = await put(memory)
        direct = direct_to(nowhere, memory)
        batch = pages_of(known, (0, PAGES))  # 2 MiB
        answers = [direct.answer(number, batch, PAGES * PAGE_BYTES) for number in range(3)]
        assert [answer is None for answer in answers] == [False, False, True]
        direct.begin_turn()
        assert direct.answer(3, batch, PAGES * PAGE_BYTES) is not None
