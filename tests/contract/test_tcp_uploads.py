"""Objects larger than a frame, from the tcp backend through a server into a store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from kvtier_file import FileBackend
from kvtier_memory import MemoryBackend
from kvtier_tcp import TcpBackend

from kvtier.backend import Backend, ObjectBatch, PutResult
from kvtier.clock import Clock, VirtualClock
from kvtier.errors import BackendError, LimitError
from kvtier.pages import U8, PageStatus
from kvtier.server import Server, ServerLimits, serve
from kvtier.testing.batches import make_objects, put_objects, read_objects
from kvtier.testing.pages import make_pages
from kvtier.testing.peer import Peer
from kvtier.wire.codec import encode
from kvtier.wire.frames import FrameLimits
from kvtier.wire.messages import (
    Abandon,
    AbandonReply,
    ErrorCode,
    Failure,
    Hello,
    Put,
    PutPart,
    PutPartReply,
    Stat,
    StatReply,
    Welcome,
)

PAGE_BYTES = 512
FRAME_PAGES = 16
OBJECT_PAGES = 10 * FRAME_PAGES + 3
FRAME = FrameLimits(payload_bytes_max=FRAME_PAGES * PAGE_BYTES)
LIMITS = ServerLimits(frame=FRAME, uploads_max=1, upload_bytes_max=300 * PAGE_BYTES)

pytestmark = pytest.mark.asyncio


class GatedPuts(MemoryBackend):
    """Puts wait until they are let through."""

    def __init__(self, page_bytes: int, capacity_bytes: int | None = None) -> None:
        super().__init__(page_bytes, capacity_bytes)
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()

    async def put(self, batch: ObjectBatch) -> PutResult:
        self.begun.set()
        await self.gate.wait()
        return await super().put(batch)


@pytest.fixture(autouse=True)
def _spool_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spool").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "spool"))


@pytest_asyncio.fixture(params=["memory", "file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    store: Backend
    if request.param == "memory":
        store = await MemoryBackend.open({}, PAGE_BYTES)
    else:
        store = await FileBackend.open({"root": tmp_path / "store", "sync": False}, PAGE_BYTES)
    yield store
    await store.close()


@pytest_asyncio.fixture
async def memory() -> AsyncIterator[MemoryBackend]:
    store = await MemoryBackend.open({}, PAGE_BYTES)
    yield store
    await store.close()


@contextlib.asynccontextmanager
async def serving(
    store: Backend,
    limits: ServerLimits = LIMITS,
    page_bytes: int = PAGE_BYTES,
    clock: Clock | None = None,
) -> AsyncIterator[Server]:
    server = await serve(store, page_bytes=page_bytes, limits=limits, clock=clock)
    try:
        yield server
    finally:
        await server.close()
    assert server.uploads == 0
    await until_no_file_is_left()


@contextlib.asynccontextmanager
async def opened(server: Server) -> AsyncIterator[TcpBackend]:
    backend = await TcpBackend.open({"url": server.url, "connections": 1}, PAGE_BYTES)
    try:
        yield backend
    finally:
        await backend.close()


@contextlib.asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Peer]:
    """A client that was let in."""
    client = await Peer.connect(server.host, server.port)
    try:
        assert isinstance((await client.ask(Hello(b"")))[0], Welcome)
        yield client
    finally:
        await client.close()


@pytest_asyncio.fixture
async def server(memory: MemoryBackend) -> AsyncIterator[Server]:
    async with serving(memory) as server:
        yield server


@pytest_asyncio.fixture
async def backend(server: Server) -> AsyncIterator[TcpBackend]:
    async with opened(server) as backend:
        yield backend


@pytest_asyncio.fixture
async def client(server: Server) -> AsyncIterator[Peer]:
    async with connected(server) as client:
        yield client


def pages_of(key: bytes, count: int = OBJECT_PAGES, generation: int = 0) -> U8:
    return make_pages(key, generation, count, PAGE_BYTES)


def rows(count: int) -> bytes:
    return bytes(count * PAGE_BYTES)


def spool_files() -> list[str]:
    """What this process has open, or mapped, in the folder of the spools."""
    files = Path("/proc/self/maps").read_text().splitlines()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            files.append(str(descriptor.readlink()))
    return [file for file in files if os.environ["TMPDIR"] in file]


async def until_no_file_is_left() -> None:
    """A thread of a store lets go of what it wrote a moment after it said so."""
    async with asyncio.timeout(10):
        while spool_files():  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0)


async def until_dropped(server: Server, backend: TcpBackend) -> None:
    """Ask on the same connection until the server has nothing of an upload left."""
    while server.uploads:
        await backend.stat([b"a"])


async def test_an_object_of_several_frames_comes_back(store: Backend) -> None:
    async with serving(store) as server, opened(server) as backend:
        versions = await put_objects(backend, {b"a": pages_of(b"a")}, PAGE_BYTES)
        assert (await store.stat([b"a"])).versions.tolist() == [versions[b"a"]]
        found = await read_objects(backend, [b"a"], PAGE_BYTES)
        np.testing.assert_array_equal(found[b"a"], pages_of(b"a"))
        assert server.uploads == 0
        await until_no_file_is_left()


@pytest.mark.parametrize("count", [FRAME_PAGES, FRAME_PAGES + 1, 2 * FRAME_PAGES, 300])
async def test_an_object_of_any_size_comes_back(backend: TcpBackend, count: int) -> None:
    await put_objects(backend, {b"a": pages_of(b"a", count)}, PAGE_BYTES)
    found = await read_objects(backend, [b"a"], PAGE_BYTES)
    np.testing.assert_array_equal(found[b"a"], pages_of(b"a", count))


async def test_small_and_large_objects_go_in_one_put(backend: TcpBackend) -> None:
    counts = [1, 5, 100, 2, 2, 40, FRAME_PAGES, 17, 3]
    objects = {b"%d" % index: pages_of(b"%d" % index, count) for index, count in enumerate(counts)}
    versions = await put_objects(backend, objects, PAGE_BYTES)
    assert (await backend.stat(list(objects))).versions.tolist() == list(versions.values())
    found = await read_objects(backend, list(objects), PAGE_BYTES)
    for key, pages in objects.items():
        np.testing.assert_array_equal(found[key], pages)


async def test_a_mapped_file_is_sent(backend: TcpBackend, tmp_path: Path) -> None:
    pages_of(b"a").tofile(tmp_path / "index")
    mapped = np.memmap(tmp_path / "index", np.uint8, "r", shape=(OBJECT_PAGES, PAGE_BYTES))
    batch = ObjectBatch((b"a",), np.array([OBJECT_PAGES], np.uint32), mapped)
    assert (await backend.put(batch)).status.tolist() == [PageStatus.OK]
    found = await read_objects(backend, [b"a"], PAGE_BYTES)
    np.testing.assert_array_equal(found[b"a"], mapped)


async def test_puts_of_large_objects_wait_for_their_turn(backend: TcpBackend) -> None:
    keys = [b"%d" % index for index in range(5)]
    await asyncio.gather(
        *(put_objects(backend, {key: pages_of(key, 50)}, PAGE_BYTES) for key in keys)
    )
    found = await read_objects(backend, keys, PAGE_BYTES)
    for key in keys:
        np.testing.assert_array_equal(found[key], pages_of(key, 50))


async def test_a_server_that_takes_one_request_at_a_time_takes_parts(
    memory: MemoryBackend,
) -> None:
    limits = ServerLimits(frame=FRAME, inflight_bytes_max=1)
    async with serving(memory, limits) as server, opened(server) as backend:
        await put_objects(backend, {b"a": pages_of(b"a")}, PAGE_BYTES)
        found = await read_objects(memory, [b"a"], PAGE_BYTES)
        np.testing.assert_array_equal(found[b"a"], pages_of(b"a"))


async def test_a_reader_sees_the_old_or_the_new_object(store: Backend) -> None:
    seen: list[U8] = []

    async def write(backend: TcpBackend) -> None:
        generation = 1
        while generation < 10 or not seen:
            await put_objects(backend, {b"a": pages_of(b"a", generation=generation)}, PAGE_BYTES)
            generation += 1

    async def read(backend: TcpBackend, writer: asyncio.Task[None]) -> None:
        while not writer.done():
            found = (await read_objects(backend, [b"a"], PAGE_BYTES))[b"a"]
            if found is not None:
                seen.append(found)

    async with serving(store) as server, opened(server) as source, opened(server) as reader:
        await put_objects(source, {b"a": pages_of(b"a", generation=0)}, PAGE_BYTES)
        async with asyncio.TaskGroup() as group:
            group.create_task(read(reader, group.create_task(write(source))))
    for found in seen:
        generation = next(
            one for one in range(1000) if (pages_of(b"a", 1, one)[0] == found[0]).all()
        )
        np.testing.assert_array_equal(found, pages_of(b"a", generation=generation))


async def test_nothing_is_seen_before_the_last_part(client: Peer, memory: MemoryBackend) -> None:
    for first in (0, 1):
        reply, _ = await client.ask(PutPart(1, b"a", 3, first), rows(1))
        assert reply == PutPartReply(PageStatus.OK, 0)
    assert (await memory.stat([b"a"])).pages.tolist() == [-1]
    reply, _ = await client.ask(PutPart(1, b"a", 3, 2), rows(1))
    stats = await memory.stat([b"a"])
    assert stats.pages.tolist() == [3]
    assert reply == PutPartReply(PageStatus.OK, int(stats.versions[0]))


class TestEnding:
    async def test_a_cancelled_put_leaves_nothing_and_the_connection_works(
        self, store: Backend
    ) -> None:
        async with serving(store) as server, opened(server) as backend:
            generation, cancelled = 0, True
            while cancelled:  # some turns of the loop later each time, until it is too late
                batch = make_objects({b"a": pages_of(b"a", 60, generation)}, PAGE_BYTES)
                task = asyncio.ensure_future(backend.put(batch))
                for _ in range(generation):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                cancelled = task.cancelled()
                found = (await read_objects(backend, [b"a"], PAGE_BYTES))[b"a"]
                if found is not None:
                    versions = (pages_of(b"a", 60, one) for one in range(generation + 1))
                    assert any(np.array_equal(found, pages) for pages in versions)
                generation += 1 + generation // 4
            await until_dropped(server, backend)
            await put_objects(backend, {b"b": pages_of(b"b")}, PAGE_BYTES)
            assert server.connections == 1
            await until_no_file_is_left()

    async def test_an_abandoned_upload_is_dropped(self, client: Peer, server: Server) -> None:
        await client.ask(PutPart(1, b"a", 3, 0), rows(1))
        assert server.uploads == 1
        assert (await client.ask(Abandon(1)))[0] == AbandonReply()
        assert server.uploads == 0
        reply, _ = await client.ask(PutPart(2, b"a", 3, 0), rows(1))
        assert reply == PutPartReply(PageStatus.OK, 0)

    async def test_abandoning_what_never_was_is_no_error(self, client: Peer) -> None:
        assert (await client.ask(Abandon(7)))[0] == AbandonReply()

    async def test_a_lost_connection_drops_its_upload(self, client: Peer, server: Server) -> None:
        await client.ask(PutPart(1, b"a", 3, 0), rows(1))
        assert len(spool_files()) == 1
        await client.close()
        async with opened(server) as other:
            await until_dropped(server, other)
            await until_no_file_is_left()
            assert (await other.stat([b"a"])).pages.tolist() == [-1]

    async def test_a_lost_server_ends_the_put(self) -> None:
        gated = GatedPuts(PAGE_BYTES)
        async with serving(gated) as server, opened(server) as backend:
            put = asyncio.ensure_future(put_objects(backend, {b"a": pages_of(b"a")}, PAGE_BYTES))
            await gated.begun.wait()
            await server.close(grace_s=0.01)
            with pytest.raises(BackendError, match="connection lost"):
                await put

    async def test_closing_a_server_drops_its_uploads(self, memory: MemoryBackend) -> None:
        async with serving(memory) as server, connected(server) as client:
            await client.ask(PutPart(1, b"a", 3, 0), rows(1))
            await server.close()
            assert server.uploads == 0
            await until_no_file_is_left()


class TestFailing:
    async def test_a_larger_object_than_announced_is_refused(self, backend: TcpBackend) -> None:
        assert backend.capability.object_pages_max == 300
        with pytest.raises(LimitError, match="300 are possible"):
            await backend.put(make_objects({b"a": pages_of(b"a", 301)}, PAGE_BYTES))

    @pytest.mark.parametrize(
        ("part", "message"),
        [
            (PutPart(1, b"a", 301, 0), "an object of 301 pages: 300 are possible"),
            (PutPart(1, b"a" * 2000, 3, 0), "2000 bytes: 1 to 1024 are possible"),
        ],
    )
    async def test_a_first_part_beyond_the_limits_is_refused_and_the_connection_stays(
        self, client: Peer, server: Server, part: PutPart, message: str
    ) -> None:
        failure, _ = await client.ask(part, rows(1))
        assert isinstance(failure, Failure)
        assert failure.code == ErrorCode.LIMIT
        assert message in failure.text
        assert server.uploads == 0
        assert isinstance((await client.ask(Stat((b"a",))))[0], StatReply)

    async def test_a_put_of_a_larger_object_than_announced_is_refused(
        self, memory: MemoryBackend
    ) -> None:
        limits = ServerLimits(frame=FRAME, upload_bytes_max=4 * PAGE_BYTES)
        async with serving(memory, limits) as server, connected(server) as client:
            failure, _ = await client.ask(Put((b"a",), np.array([5], np.uint32)), rows(5))
            assert isinstance(failure, Failure)
            assert failure.code == ErrorCode.LIMIT
            assert "4 are possible" in failure.text

    async def test_a_read_only_store_takes_no_part(self, memory: MemoryBackend) -> None:
        memory.capability = replace(memory.capability, writable=False)
        async with serving(memory) as server, connected(server) as client:
            failure, _ = await client.ask(PutPart(1, b"a", 3, 0), rows(1))
            assert isinstance(failure, Failure)
            assert "read-only" in failure.text

    async def test_a_defect_of_the_store_drops_the_spool(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        # A kept record of the defect would keep the frames, and with them what was put.
        caplog.set_level(logging.CRITICAL, logger="kvtier.server")

        class Defective(MemoryBackend):
            async def put(self, batch: ObjectBatch) -> PutResult:
                raise ZeroDivisionError

        async with serving(Defective(PAGE_BYTES, None)) as server, opened(server) as backend:
            with pytest.raises(BackendError, match="ZeroDivisionError"):
                await backend.put(make_objects({b"a": pages_of(b"a")}, PAGE_BYTES))
            assert server.uploads == 0

    async def test_more_uploads_than_allowed_are_refused_and_the_first_goes_on(
        self, client: Peer
    ) -> None:
        await client.ask(PutPart(1, b"a", 2, 0), rows(1))
        failure, _ = await client.ask(PutPart(2, b"b", 2, 0), rows(1))
        assert isinstance(failure, Failure)
        assert failure.code == ErrorCode.LIMIT
        reply, _ = await client.ask(PutPart(1, b"a", 2, 1), rows(1))
        assert isinstance(reply, PutPartReply)
        assert reply.version

    async def test_open_uploads_of_a_client_take_no_more_than_one_object_may(
        self, memory: MemoryBackend
    ) -> None:
        async with (
            serving(memory, replace(LIMITS, uploads_max=4)) as server,
            connected(server) as client,
            connected(server) as other,
        ):
            await client.ask(PutPart(1, b"a", 200, 0), rows(1))
            failure, _ = await client.ask(PutPart(2, b"b", 101, 0), rows(1))
            assert isinstance(failure, Failure)
            assert failure.code == ErrorCode.LIMIT
            assert "beside uploads of 200: 300 are possible together" in failure.text
            for peer, number, pages in ((client, 3, 100), (other, 1, 300)):
                reply, _ = await peer.ask(PutPart(number, b"c", pages, 0), rows(1))
                assert reply == PutPartReply(PageStatus.OK, 0)

    async def test_open_uploads_of_all_clients_take_no_more_disk_than_there_may_be(
        self, memory: MemoryBackend, caplog: pytest.LogCaptureFixture
    ) -> None:
        limits = replace(LIMITS, spool_bytes_max=400 * PAGE_BYTES)
        async with (
            serving(memory, limits) as server,
            connected(server) as client,
            connected(server) as other,
        ):
            await client.ask(PutPart(1, b"a", 300, 0), rows(1))
            reply, _ = await other.ask(PutPart(1, b"b", 101, 0), rows(1))
            assert reply == PutPartReply(PageStatus.FAILED, 0)
            assert "serve.spool" in caplog.text
            await other.ask(Abandon(1))
            reply, _ = await other.ask(PutPart(2, b"b", 100, 0), rows(1))
            assert reply == PutPartReply(PageStatus.OK, 0)
            await client.ask(Abandon(1))
            await other.ask(Abandon(2))
            reply, _ = await other.ask(PutPart(3, b"b", 300, 0), rows(1))
            assert reply == PutPartReply(PageStatus.OK, 0)

    async def test_an_upload_that_is_not_continued_is_given_up_though_its_client_asks_on(
        self, memory: MemoryBackend
    ) -> None:
        limits = replace(LIMITS, upload_timeout_s=0.02)
        async with serving(memory, limits) as server, connected(server) as client:
            await client.ask(PutPart(1, b"a", 2, 0), rows(1))
            async with asyncio.timeout(10):
                while server.uploads:
                    assert isinstance((await client.ask(Stat((b"a",))))[0], StatReply)
            reply, _ = await client.ask(PutPart(1, b"a", 2, 1), rows(1))
            assert reply == PutPartReply(PageStatus.FAILED, 0)
            assert (await memory.stat([b"a"])).pages.tolist() == [-1]
            reply, _ = await client.ask(PutPart(2, b"a", 2, 0), rows(1))
            assert reply == PutPartReply(PageStatus.OK, 0)

    async def test_an_upload_whose_next_part_is_on_its_way_is_not_given_up(
        self, memory: MemoryBackend
    ) -> None:
        clock = VirtualClock()
        patient = {"frame_timeout_s": 3600.0, "idle_timeout_s": 3600.0}
        limits = replace(LIMITS, upload_timeout_s=0.02, **patient)
        part = PutPart(1, b"a", 2, 1)
        frame = encode(part, 1, PAGE_BYTES) + rows(1)
        async with (
            serving(memory, limits, clock=clock) as server,
            connected(server) as client,
            connected(server) as other,
        ):
            for peer in (client, other):
                await peer.ask(PutPart(1, b"a", 2, 0), rows(1))
            received = server.counters.received_bytes
            await client.send_bytes(frame[:-1])
            async with asyncio.timeout(10):
                while server.counters.received_bytes < received + len(frame) - 1:  # noqa: ASYNC110
                    await asyncio.sleep(0)
                while server.uploads == 2:
                    clock.advance_to(clock.now_ns() + 10**8)
                    await other.ask(Stat((b"a",)))
            await client.send_bytes(frame[-1:])
            _, reply, _ = await client.next()
            assert isinstance(reply, PutPartReply)
            assert reply.status == PageStatus.OK

    async def test_an_object_that_the_disk_cannot_take_has_failed(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        large = 4 << 20
        backend = await MemoryBackend.open({}, large)
        limits = ServerLimits(upload_bytes_max=1 << 60, spool_bytes_max=1 << 60)
        async with serving(backend, limits, large) as server, connected(server) as client:
            reply, _ = await client.ask(PutPart(1, b"a", (1 << 32) - 1, 0), bytes(large))
            assert reply == PutPartReply(PageStatus.FAILED, 0)
            assert "set TMPDIR to a larger disk" in caplog.text
            assert server.uploads == 0
            assert isinstance((await client.ask(Stat((b"a",))))[0], StatReply)

    async def test_a_disk_that_fills_up_fails_the_object_alone(
        self, backend: TcpBackend, server: Server
    ) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Writes beyond it fail with EFBIG, as they fail on a full disk with ENOSPC.
        resource.setrlimit(resource.RLIMIT_FSIZE, (50 * PAGE_BYTES, hard))
        try:
            objects = {b"large": pages_of(b"large"), b"small": pages_of(b"small", 3)}
            result = await backend.put(make_objects(objects, PAGE_BYTES))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert result.status.tolist() == [PageStatus.FAILED, PageStatus.OK]
        assert result.versions[0] == 0
        await until_dropped(server, backend)
        await put_objects(backend, {b"large": pages_of(b"large")}, PAGE_BYTES)

    async def test_a_store_without_room_fails_the_object_alone(self) -> None:
        store = await MemoryBackend.open({"capacity_bytes": 60 * PAGE_BYTES}, PAGE_BYTES)
        async with serving(store) as server, opened(server) as backend:
            objects = {b"large": pages_of(b"large"), b"fits": pages_of(b"fits", 50)}
            result = await backend.put(make_objects(objects, PAGE_BYTES))
        assert result.status.tolist() == [PageStatus.FAILED, PageStatus.OK]

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ([(PutPart(1, b"a", 9, 1), 1)], "begins an upload with page 1"),
            ([(PutPart(1, b"a", 9, 0), 1), (PutPart(1, b"a", 9, 2), 1)], "at most 8 from page 1"),
            ([(PutPart(1, b"a", 9, 0), 2), (PutPart(1, b"a", 9, 1), 1)], "at most 7 from page 2"),
            ([(PutPart(1, b"a", 9, 0), 1), (PutPart(1, b"a", 9, 0), 1)], "at most 8 from page 1"),
            ([(PutPart(1, b"a", 9, 0), 5), (PutPart(1, b"a", 9, 5), 5)], "5 pages from page 5"),
            ([(PutPart(1, b"a", 2, 0), 3)], "3 pages from page 0"),
            ([(PutPart(1, b"a", 0, 0), 1)], "1 pages from page 0"),
            ([(PutPart(1, b"a", 9, 0), 1), (PutPart(1, b"b", 9, 1), 1)], "another object"),
            ([(PutPart(1, b"a", 9, 0), 1), (PutPart(1, b"a", 8, 1), 1)], "another object"),
            ([(PutPart(1, b"a", 1, 0), 1), (PutPart(1, b"a", 1, 1), 1)], "begins an upload"),
            ([(PutPart(1, b"a", 9, 0), 0)], "a payload of 0 bytes"),
            ([(PutPart(1, b"a", 9, 0), 0.5)], "a payload of 256 bytes"),
        ],
    )
    async def test_parts_that_do_not_continue_an_upload_are_hung_up_on(
        self, client: Peer, server: Server, parts: list[tuple[PutPart, float]], message: str
    ) -> None:
        for part, pages in parts:
            answer, _ = await client.ask(part, bytes(int(pages * PAGE_BYTES)))
        assert isinstance(answer, Failure)
        assert answer.code == ErrorCode.PROTOCOL
        assert message in answer.text
        assert await client.is_hung_up()

    async def test_a_part_after_the_end_of_its_upload_is_hung_up_on(self, client: Peer) -> None:
        await client.ask(PutPart(1, b"a", 3, 0), rows(1))
        client.send(Abandon(1))
        answer, _ = await client.ask(PutPart(1, b"a", 3, 1), rows(1))
        if answer == AbandonReply():
            answer = (await client.next())[1]
        assert isinstance(answer, Failure)
        assert answer.code == ErrorCode.PROTOCOL
