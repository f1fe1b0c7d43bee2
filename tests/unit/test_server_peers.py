"""Peers that are strange, slow or too many: each is refused, counted and logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from kvtier_memory import MemoryBackend
from server_peers import connect, failure_of, knock

from kvtier.clock import VirtualClock
from kvtier.server import Server, ServerLimits, Tokens, serve
from kvtier.server.budget import Budget
from kvtier.server.counting import ServerCounters
from kvtier.server.refusals import Reason, Refusals
from kvtier.testing.batches import make_extents, put_objects
from kvtier.testing.pages import make_pages
from kvtier.testing.peer import Peer
from kvtier.wire.codec import encode
from kvtier.wire.frames import FrameLimits, Kind, encode_frame
from kvtier.wire.messages import (
    Delete,
    ErrorCode,
    Failure,
    Hello,
    Put,
    PutReply,
    Read,
    Stat,
    StatReply,
)

PAGE_BYTES = 512
FRAME = FrameLimits(payload_bytes_max=1 << 20)
TOKENS = Tokens.of({"a secret": ""})

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def memory() -> AsyncIterator[MemoryBackend]:
    backend = await MemoryBackend.open({}, PAGE_BYTES)
    yield backend
    await backend.close()


def put_of(pages: int) -> bytes:
    """The head of a PUT whose payload is still to come."""
    return encode(Put((b"a",), np.array([pages], np.uint32)), 1, pages * PAGE_BYTES)


async def garbage(server: Server) -> Peer:
    client = await knock(server)
    await client.send_bytes(b"\x7f" * 100)
    return client


async def oversized_body(server: Server) -> Peer:
    client = await connect(server, "a secret")
    await client.send_bytes(encode_frame(Kind.STAT, 1, b"")[:16] + b"\xff" * 8 + bytes(8))
    return client


async def oversized_payload(server: Server) -> Peer:
    client = await connect(server, "a secret")
    await client.send_bytes(put_of(1 << 20))
    return client


async def no_token(server: Server) -> Peer:
    client = await knock(server)
    client.send(Hello(b""))
    return client


async def wrong_token(server: Server) -> Peer:
    client = await knock(server)
    client.send(Hello(b"another secret"), Hello(b"a secret"))  # the second guess counts for nothing
    return client


async def silence(server: Server) -> Peer:
    return await knock(server)


async def half_a_hello(server: Server) -> Peer:
    client = await knock(server)
    await client.send_bytes(encode(Hello(b"a secret"), 1)[:-1])
    return client


async def slow_header(server: Server) -> Peer:
    client = await connect(server, "a secret")
    await client.send_bytes(b"KVT")
    return client


async def slow_payload(server: Server) -> Peer:
    client = await connect(server, "a secret")
    await client.send_bytes(put_of(100) + bytes(PAGE_BYTES))
    return client


async def nothing_asked(server: Server) -> Peer:
    return await connect(server, "a secret")


@pytest.mark.parametrize(
    ("visit", "limits", "reason", "code", "text"),
    [
        (garbage, {}, "protocol", ErrorCode.PROTOCOL, "does not speak kvtier"),
        (oversized_body, {}, "protocol", ErrorCode.PROTOCOL, "over the limit of 16777216"),
        (oversized_payload, {}, "protocol", ErrorCode.PROTOCOL, "over the limit of 1048576"),
        (no_token, {}, "token", ErrorCode.DENIED, "the token is missing or wrong"),
        (wrong_token, {}, "token", ErrorCode.DENIED, "the token is missing or wrong"),
        (silence, {"hello_timeout_s": 0.05}, "silent", ErrorCode.DENIED, "no HELLO came in time"),
        (half_a_hello, {"hello_timeout_s": 0.05}, "silent", ErrorCode.DENIED, "no HELLO came"),
        (slow_header, {"frame_timeout_s": 0.05}, "slow_frame", ErrorCode.LIMIT, "within 50 ms"),
        (slow_payload, {"frame_timeout_s": 0.05}, "slow_frame", ErrorCode.LIMIT, "did not end"),
        (nothing_asked, {"idle_timeout_s": 0.05}, "idle", ErrorCode.LIMIT, "nothing was asked"),
    ],
)
async def test_a_peer_is_told_why_hung_up_on_counted_and_logged(
    memory: MemoryBackend,
    caplog: pytest.LogCaptureFixture,
    visit: Callable[[Server], Awaitable[Peer]],
    limits: dict[str, float],
    reason: str,
    code: ErrorCode,
    text: str,
) -> None:
    bounds = ServerLimits(frame=FRAME, denial_delay_s=0.01, linger_s=0.05, **limits)
    server = await serve(memory, page_bytes=PAGE_BYTES, tokens=TOKENS, limits=bounds)
    with caplog.at_level(logging.WARNING):
        client = await visit(server)
        failure = await failure_of(client)
        assert await client.is_hung_up()
    assert failure.code == code
    assert text in failure.text
    assert server.counters.refusals == {reason: 1}
    (record,) = caplog.records
    assert record.getMessage().startswith("refused 127.0.0.1:")
    assert text in record.getMessage()
    assert "secret" not in record.getMessage()
    await client.close()
    listing = memory.keys()
    assert [key async for key in listing] == []
    await server.close()


async def test_a_frame_that_goes_on_in_time_may_be_slow(memory: MemoryBackend) -> None:
    """What takes long is not a frame but many, each in time."""
    limits = ServerLimits(frame_timeout_s=0.2, idle_timeout_s=0.2)
    server = await serve(memory, page_bytes=PAGE_BYTES, limits=limits)
    client = await connect(server)
    for _ in range(4):
        frame = encode(Stat((b"a",)), 1)
        await client.send_bytes(frame[:20])
        await asyncio.sleep(0.08)
        await client.send_bytes(frame[20:])
        assert isinstance((await client.next())[1], StatReply)
    assert not server.counters.refusals
    await client.close()
    await server.close()


async def test_who_does_not_read_answers_is_cut_in_time(memory: MemoryBackend) -> None:
    pages = make_pages(b"a", 0, 4000, PAGE_BYTES)
    versions = await put_objects(memory, {b"a": pages}, PAGE_BYTES)
    limits = ServerLimits(write_timeout_s=0.1, linger_s=0.05)
    server = await serve(memory, page_bytes=PAGE_BYTES, limits=limits)
    client = await knock(server)
    client.writer.transport.pause_reading()
    client.send(Hello(b""), *[Read(make_extents(versions, [(b"a", 0, 4000, 0)]))] * 20)
    while server.connections or not server.counters.accepted:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert server.counters.refusals == {"not_reading": 1}
    while server.gauges()["kvtier_held_bytes"]:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await client.close()
    await server.close()


async def test_of_too_many_strangers_the_oldest_is_refused(memory: MemoryBackend) -> None:
    limits = ServerLimits(strangers_max=3, linger_s=0.05)
    server = await serve(memory, page_bytes=PAGE_BYTES, limits=limits)
    inside = await connect(server)
    strangers = [await knock(server) for _ in range(3)]
    guest = await connect(server)  # comes in, although the door is full of others
    assert (await failure_of(strangers[0])).text == "too many clients come in at once"
    assert isinstance((await inside.ask(Stat((b"a",))))[0], StatReply)
    for client in (inside, guest, *strangers):
        await client.close()
    await server.close()


@pytest.mark.parametrize(
    "request_of_too_much",
    [
        Stat((b"a", b"b", b"c", b"d")),
        Delete((b"a", b"b", b"c", b"d")),
        Put((b"a", b"b", b"c", b"d"), np.ones(4, np.uint32)),
        Read(make_extents({b"a": 1}, [(b"a", 0, 1, row) for row in range(4)])),
        Read(make_extents({b"a": 1, b"b": 1, b"c": 1, b"d": 1}, [(b"a", 0, 1, 0)])),
    ],
    ids=["stat", "delete", "put", "extents", "keys"],
)
async def test_a_request_of_too_many_items_is_refused_and_the_connection_lives(
    memory: MemoryBackend, request_of_too_much: Stat | Delete | Put | Read
) -> None:
    limits = ServerLimits(batch_items_max=3)
    server = await serve(memory, page_bytes=PAGE_BYTES, limits=limits)
    client = await connect(server)
    payload = bytes(4 * PAGE_BYTES) if isinstance(request_of_too_much, Put) else b""
    failure, _ = await client.ask(request_of_too_much, payload)
    assert isinstance(failure, Failure)
    assert failure.code == ErrorCode.LIMIT
    assert "3 are possible at once" in failure.text
    assert isinstance((await client.ask(Stat((b"a",))))[0], StatReply)
    await client.close()
    await server.close()


class TestMemory:
    async def test_many_slow_senders_hold_no_more_than_they_sent(
        self, memory: MemoryBackend
    ) -> None:
        """Each announces the most that it may; together that is 64 times what there is.

        What each has sent may lie on a huge page of 2 MiB.
        """
        limits = ServerLimits(memory_bytes_max=64 << 20, idle_timeout_s=60)
        server = await serve(memory, page_bytes=PAGE_BYTES, limits=limits)
        before_bytes = _resident_bytes()
        clients = [await connect(server) for _ in range(64)]
        announced_pages = (63 << 20) // PAGE_BYTES
        for client in clients:
            await client.send_bytes(put_of(announced_pages) + bytes(PAGE_BYTES))
        await _settled(server)
        assert 63 << 20 <= server.gauges()["kvtier_held_bytes"] <= 64 << 20
        assert _resident_bytes() - before_bytes < 64 * (5 << 19)
        for client in clients:
            await client.close()
        await server.close()
        assert server.gauges()["kvtier_held_bytes"] == 0

    async def test_many_who_do_not_read_share_what_there_is(self, memory: MemoryBackend) -> None:
        pages = make_pages(b"a", 0, 2000, PAGE_BYTES)
        versions = await put_objects(memory, {b"a": pages}, PAGE_BYTES)
        limits = ServerLimits(memory_bytes_max=4 * pages.nbytes)
        server = await serve(memory, page_bytes=PAGE_BYTES, limits=limits)
        read = Read(make_extents(versions, [(b"a", 0, 2000, 0)]))
        clients = [await connect(server) for _ in range(16)]
        for client in clients:
            client.writer.transport.pause_reading()
            client.send(*[read] * 8)
        await _settled(server)
        assert server.gauges()["kvtier_held_bytes"] <= 4 * pages.nbytes + (17 << 16)

        async def read_all(client: Peer) -> None:
            client.writer.transport.resume_reading()
            for _ in range(8):
                assert len((await client.next())[2]) == pages.nbytes
            await client.close()

        await asyncio.gather(*map(read_all, clients))  # once they read, all are served
        await server.close()
        assert server.gauges()["kvtier_held_bytes"] == 0

    async def test_who_leaves_lets_the_next_one_go_on(self, memory: MemoryBackend) -> None:
        limits = ServerLimits(frame=FRAME, memory_bytes_max=1 << 20)
        server = await serve(memory, page_bytes=PAGE_BYTES, limits=limits)
        holder, leaver, waiter = [await connect(server) for _ in range(3)]
        for client in (holder, leaver):
            await client.send_bytes(put_of(1900) + bytes(PAGE_BYTES))
            await _settled(server)
        counts = np.array([1000], np.uint32)
        asking = waiter.ask(Put((b"w",), counts), bytes(1000 * PAGE_BYTES))
        asked = asyncio.ensure_future(asking)
        await _settled(server)
        await leaver.close()
        await _settled(server)
        assert not asked.done()
        await holder.close()
        assert isinstance((await asked)[0], PutReply)
        await waiter.close()
        await server.close()


async def test_the_line_of_a_budget_is_served_in_order() -> None:
    budget, served = Budget(10), []

    def second() -> None:
        served.append("second")

    def third() -> None:
        served.append("third")

    def fourth() -> None:
        served.append("fourth")

    assert budget.take(8, lambda: None)
    assert not budget.take(5, second)
    assert not budget.take(1, third)  # it would fit, and would pass the one before it
    assert not budget.take(5, fourth)
    budget.leave(fourth)
    budget.give(8)
    assert served == ["second", "third"]
    assert budget.held_bytes == 6
    budget.give(6)
    assert budget.take(99, lambda: None)  # alone, it may be larger than all


async def test_a_flood_of_refusals_does_not_flood_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counters, clock = ServerCounters(), VirtualClock()
    refusals = Refusals(counters, clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            refusals.note(Reason.TOKEN, "192.0.2.1:5", "why")
        assert len(caplog.records) == 50
        clock.advance_to(10_000_000_000)
        refusals.note(Reason.TOKEN, "192.0.2.1:5", "why")
    assert [record.getMessage() for record in caplog.records[50:]] == [
        "refused 950 more",
        "refused 192.0.2.1:5 (token): why",
    ]
    assert counters.refusals == {"token": 1001}


async def _settled(server: Server) -> None:
    """Until the server has taken what it will: nothing changes while another client is served."""
    other = await connect(server)
    seen = None
    while seen != (now := server.gauges()["kvtier_held_bytes"]):
        seen = now
        for _ in range(100):
            await other.ask(Stat((b"a",)))
    await other.close()


def _resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


async def test_who_hangs_up_before_it_is_told_why_it_is_denied_is_let_go(
    memory: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    limits = ServerLimits(denial_delay_s=0.05)
    server = await serve(memory, page_bytes=PAGE_BYTES, tokens=TOKENS, limits=limits)
    client = await knock(server)
    client.send(Hello(b"wrong"))
    client.writer.close()
    async with asyncio.timeout(10):
        while not server.counters.refusals:  # noqa: ASYNC110
            await asyncio.sleep(0)
    await server.close()
    assert not [record for record in caplog.records if record.name == "asyncio"]
