"""What the redis backend does when its server dies, freezes, fills up, or holds strange things."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from kvtier_redis import RedisBackend
from kvtier_redis.layout import Layout
from kvtier_redis.servers import Servers
from kvtier_redis.writing import Publisher
from redis_servers import ACL_RULE, RedisServer, field_of, name_of, redis_server

from kvtier.backend import ObjectBatch
from kvtier.errors import BackendError
from kvtier.pages import U8, PageStatus
from kvtier.testing.batches import list_keys, make_extents, make_objects, put_objects, read_objects
from kvtier.testing.pages import make_pages

PAGE_BYTES = 512
MIB_PAGES = (1 << 20) // PAGE_BYTES
OK, ABSENT, FAILED = PageStatus.OK, PageStatus.ABSENT, PageStatus.FAILED

pytestmark = pytest.mark.asyncio


def pages_of(key: bytes, count: int = 1, generation: int = 0) -> U8:
    return make_pages(key, generation, count, PAGE_BYTES)


def objects(**pages: U8) -> ObjectBatch:
    return make_objects({key.encode(): value for key, value in pages.items()}, PAGE_BYTES)


async def open_redis(url: str, **options: object) -> RedisBackend:
    return await RedisBackend.open({"url": url, **options}, PAGE_BYTES)


async def read_pages(
    backend: RedisBackend, version: int, pages: Sequence[int], key: bytes = b"a"
) -> tuple[list[int], U8]:
    """Read single pages of one object: their statuses and rows."""
    out = np.zeros((len(pages), PAGE_BYTES), np.uint8)
    extents = [(key, page, 1, row) for row, page in enumerate(pages)]
    status = await backend.read(make_extents({key: version}, extents), out)
    return status.tolist(), out


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    shared_server.client.flushall()
    return shared_server


@pytest_asyncio.fixture
async def backend(server: RedisServer) -> AsyncIterator[RedisBackend]:
    backend = await open_redis(server.url, timeout_s=20)
    yield backend
    await backend.close()


class TestLosing:
    async def test_a_killed_server_fails_calls_until_it_is_back(
        self, server: RedisServer, backend: RedisBackend
    ) -> None:
        await put_objects(backend, {b"a": pages_of(b"a")}, PAGE_BYTES)
        server.stop()
        try:
            for _ in range(3):
                with pytest.raises(BackendError, match="origin redis://"):
                    await backend.stat([b"a"])
            with pytest.raises(BackendError):
                await backend.put(objects(a=pages_of(b"a")))
        finally:
            server.start()
        assert (await backend.stat([b"a"])).pages.tolist() == [-1]  # it kept nothing
        await put_objects(backend, {b"a": pages_of(b"a", 3)}, PAGE_BYTES)
        found = await read_objects(backend, [b"a"], PAGE_BYTES)
        np.testing.assert_array_equal(found[b"a"], pages_of(b"a", 3))

    async def test_a_server_that_dies_ends_what_waits_for_it(self, server: RedisServer) -> None:
        backend = await open_redis(server.url)
        server.freeze()
        stats = [asyncio.ensure_future(backend.stat([b"a"])) for _ in range(6)]
        await asyncio.wait(stats, timeout=0.05)
        server.stop()
        try:
            results = await asyncio.gather(*stats, return_exceptions=True)
        finally:
            server.start()
        assert all(isinstance(result, BackendError) for result in results)
        await backend.close()

    async def test_a_frozen_server_is_given_up_and_its_late_answers_are_thrown_away(
        self, server: RedisServer
    ) -> None:
        backend = await open_redis(server.url, timeout_s=0.3, connections=1)
        versions = await put_objects(backend, {b"a": pages_of(b"a", 50)}, PAGE_BYTES)
        server.freeze()
        try:
            with pytest.raises(BackendError, match=r"no answer within 0\.3 s"):
                await read_pages(backend, versions[b"a"], [1, 2, 3])
        finally:
            server.thaw()
        status, out = await read_pages(backend, versions[b"a"], [40, 30])
        assert status == [OK, OK]
        np.testing.assert_array_equal(out, pages_of(b"a", 50)[[40, 30]])
        await backend.close()

    async def test_closing_does_not_wait_for_a_frozen_server(self, server: RedisServer) -> None:
        backend = await open_redis(server.url)
        server.freeze()
        try:
            put = asyncio.ensure_future(backend.put(objects(a=pages_of(b"a", 8 * MIB_PAGES))))
            await asyncio.wait([put], timeout=0.05)
            await backend.close()
            with pytest.raises(Exception, match="closed"):
                await put
        finally:
            server.thaw()

    async def test_a_cancelled_call_leaves_no_reply_to_the_next(self, server: RedisServer) -> None:
        backend = await open_redis(server.url, connections=1)
        versions = await put_objects(backend, {b"a": pages_of(b"a", 500)}, PAGE_BYTES)
        for turns in range(30):
            read = asyncio.ensure_future(read_pages(backend, versions[b"a"], range(400)))
            for _ in range(turns):
                await asyncio.sleep(0)
            read.cancel()
            status, out = await read_pages(backend, versions[b"a"], [450 + turns])
            assert status == [OK]
            np.testing.assert_array_equal(out, pages_of(b"a", 500)[[450 + turns]])
        await backend.close()

    async def test_a_changed_password_is_told_and_the_right_one_works_again(
        self, server: RedisServer
    ) -> None:
        acl = server.client.execute_command
        acl("ACL", "SETUSER", "kv", "reset", "on", ">old", *ACL_RULE)
        backend = await open_redis(f"redis://kv:old@127.0.0.1:{server.port}")
        acl("ACL", "SETUSER", "kv", "<old", ">new")
        acl("CLIENT", "KILL", "USER", "kv")
        with pytest.raises(BackendError):  # it may only now be seen that the connection ended
            await backend.stat([b"a"])
        with pytest.raises(BackendError, match="does not let user 'kv' in"):
            await backend.stat([b"a"])
        acl("ACL", "SETUSER", "kv", "<new", ">old")
        assert (await backend.stat([b"a"])).pages.tolist() == [-1]
        await backend.close()

    async def test_a_right_that_is_taken_away_fails_items(self, server: RedisServer) -> None:
        acl = server.client.execute_command
        acl("ACL", "SETUSER", "kv", "reset", "on", ">old", *ACL_RULE)
        backend = await open_redis(f"redis://kv:old@127.0.0.1:{server.port}")
        versions = await put_objects(backend, {b"a": pages_of(b"a")}, PAGE_BYTES)
        acl("ACL", "SETUSER", "kv", "-hset", "-hmget", "-hget", "-unlink", "-scan")
        assert (await backend.put(objects(a=pages_of(b"a")))).status.tolist() == [FAILED]
        assert (await read_pages(backend, versions[b"a"], [0]))[0] == [FAILED]
        assert (await backend.delete([b"a"])).tolist() == [FAILED]
        with pytest.raises(BackendError, match="hget"):
            await backend.stat([b"a"])
        with pytest.raises(BackendError, match="scan"):
            await list_keys(backend)
        await backend.close()


@pytest.fixture
def limited(server: RedisServer) -> Iterator[RedisServer]:
    """A server that has room for about 2 MiB of objects."""
    used = int(server.client.info("memory")["used_memory"])
    server.client.config_set("maxmemory", used + (2 << 20))
    yield server
    server.client.config_set("maxmemory", 0)
    server.client.config_set("maxmemory-policy", "noeviction")


class TestFull:
    @pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
    async def test_evicted_objects_are_absent_and_the_others_whole(
        self, limited: RedisServer, backend: RedisBackend, policy: str
    ) -> None:
        limited.client.config_set("maxmemory-policy", policy)
        keys = [b"%d" % number for number in range(40)]
        versions: dict[bytes, int] = {}
        for key in keys:
            result = await backend.put(make_objects({key: pages_of(key, 200)}, PAGE_BYTES))
            versions[key] = int(result.versions[0])
        extents = [(key, 0, 200, 200 * row) for row, key in enumerate(keys)]
        out = np.zeros((200 * len(keys), PAGE_BYTES), np.uint8)
        status = await backend.read(make_extents(versions, extents), out)
        assert set(status.tolist()) == {OK, ABSENT}
        for row, key in enumerate(keys):
            if status[row] == OK:
                rows = out[200 * row : 200 * (row + 1)]
                np.testing.assert_array_equal(rows, pages_of(key, 200))

    @pytest.mark.parametrize("count", [6 * MIB_PAGES, 16 * MIB_PAGES], ids=["at once", "in parts"])
    async def test_a_put_without_room_fails_and_keeps_the_old_object(
        self, limited: RedisServer, backend: RedisBackend, count: int
    ) -> None:
        old = await put_objects(backend, {b"a": pages_of(b"a", 5)}, PAGE_BYTES)
        fill = {b"%d" % key: pages_of(b"", MIB_PAGES // 4) for key in range(12)}
        await backend.put(make_objects(fill, PAGE_BYTES))
        result = await backend.put(objects(a=pages_of(b"a", count, 1)))
        assert result.status.tolist() == [FAILED]
        assert result.versions.tolist() == [0]
        status, out = await read_pages(backend, old[b"a"], range(5))
        assert status == [OK] * 5
        np.testing.assert_array_equal(out, pages_of(b"a", 5))
        names = limited.client.keys("*")
        drafts = [name for name in names if not name.endswith((b"}", b":format"))]
        assert drafts == []


class TestDamage:
    async def test_damaged_pages_fail_and_the_others_are_served(
        self, server: RedisServer, backend: RedisBackend
    ) -> None:
        versions = await put_objects(backend, {b"a": pages_of(b"a", 6)}, PAGE_BYTES)
        server.client.hset(name_of(b"a"), field_of(1), b"short")
        server.client.hset(name_of(b"a"), field_of(2), bytes(PAGE_BYTES + 1))
        server.client.hdel(name_of(b"a"), field_of(3))
        status, out = await read_pages(backend, versions[b"a"], range(6))
        assert status == [OK, FAILED, FAILED, FAILED, OK, OK]
        np.testing.assert_array_equal(out[[0, 4, 5]], pages_of(b"a", 6)[[0, 4, 5]])

    async def test_an_extent_fails_with_one_of_its_pages(
        self, server: RedisServer, backend: RedisBackend
    ) -> None:
        versions = await put_objects(backend, {b"a": pages_of(b"a", 6)}, PAGE_BYTES)
        server.client.hdel(name_of(b"a"), field_of(2))
        out = np.zeros((7, PAGE_BYTES), np.uint8)
        batch = make_extents(versions, [(b"a", 0, 4, 0), (b"a", 3, 3, 4)])
        assert (await backend.read(batch, out)).tolist() == [FAILED, OK]
        np.testing.assert_array_equal(out[4:], pages_of(b"a", 6)[3:])

    @pytest.mark.parametrize("first_page", [3, 6, (1 << 32) - 1])
    async def test_an_extent_past_the_end_is_absent(
        self, backend: RedisBackend, first_page: int
    ) -> None:
        versions = await put_objects(backend, {b"a": pages_of(b"a", 6)}, PAGE_BYTES)
        out = np.zeros((4, PAGE_BYTES), np.uint8)
        batch = make_extents(versions, [(b"a", first_page, 4, 0)])
        assert (await backend.read(batch, out)).tolist() == [ABSENT]

    async def test_an_extent_past_the_end_is_absent_whatever_else_is_wrong_with_it(
        self, server: RedisServer, backend: RedisBackend
    ) -> None:
        """One that takes several commands, and one with a page that was lost."""
        versions = await put_objects(backend, {b"a": pages_of(b"a", 6)}, PAGE_BYTES)
        server.client.hdel(name_of(b"a"), field_of(2))
        pages = (2 << 20) // PAGE_BYTES + 1
        out = np.zeros((pages + 4, PAGE_BYTES), np.uint8)
        batch = make_extents(versions, [(b"a", 3, pages, 0), (b"a", 2, 1, pages), (b"a", 2, 5, 0)])
        assert (await backend.read(batch, out)).tolist() == [ABSENT, FAILED, ABSENT]

    @pytest.mark.parametrize("header", [None, b"", b"x" * 15, b"x" * 16, b"x" * 17])
    async def test_an_object_without_its_header_is_absent(
        self, server: RedisServer, backend: RedisBackend, header: bytes | None
    ) -> None:
        versions = await put_objects(backend, {b"a": pages_of(b"a", 2)}, PAGE_BYTES)
        if header is None:
            server.client.hdel(name_of(b"a"), b"h")
        else:
            server.client.hset(name_of(b"a"), b"h", header)
        assert (await backend.stat([b"a"])).pages.tolist() == [-1]
        assert (await read_pages(backend, versions[b"a"], [0]))[0] == [ABSENT]

    async def test_pages_of_another_size_are_absent(
        self, server: RedisServer, backend: RedisBackend
    ) -> None:
        server.client.delete("kvtier:format")  # as a server that evicts may do
        other = await RedisBackend.open({"url": server.url}, 2 * PAGE_BYTES)
        versions = await put_objects(
            other, {b"a": make_pages(b"a", 0, 2, 2 * PAGE_BYTES)}, 2 * PAGE_BYTES
        )
        await other.close()
        assert (await backend.stat([b"a"])).pages.tolist() == [-1]
        assert (await read_pages(backend, versions[b"a"], [0]))[0] == [ABSENT]

    async def test_a_foreign_value_in_the_place_of_an_object_is_no_object(
        self, server: RedisServer, backend: RedisBackend
    ) -> None:
        server.client.rpush(name_of(b"a"), "foreign")
        assert (await backend.stat([b"a"])).pages.tolist() == [-1]
        assert (await read_pages(backend, 1, [0]))[0] == [ABSENT]
        assert await list_keys(backend) == []
        await put_objects(backend, {b"a": pages_of(b"a", 2)}, PAGE_BYTES)
        assert (await backend.stat([b"a"])).pages.tolist() == [2]


class Interrupted(Servers):
    """Calls ``between`` before each exchange but the first."""

    def __init__(self, inner: Servers, between: Any) -> None:
        self._inner = inner
        self._between = between
        self._count = 0

    async def exchange(self, requests: Any, take: Any) -> None:
        if self._count:
            await self._between(self._count)
        self._count += 1
        await self._inner.exchange(requests, take)

    async def masters(self) -> Any:
        return await self._inner.masters()

    async def spread(self, names: Any) -> Any:
        return await self._inner.spread(names)

    async def close(self) -> None:
        await self._inner.close()


class TestVersions:
    async def test_a_read_of_several_pieces_never_mixes_versions(
        self, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        count = 20 * MIB_PAGES
        old = await put_objects(backend, {b"a": pages_of(b"a", count)}, PAGE_BYTES)

        async def rewrite(number: int) -> None:
            if number == 1:
                monkeypatch.undo()
                await put_objects(backend, {b"a": pages_of(b"a", count, 1)}, PAGE_BYTES)

        monkeypatch.setattr(backend, "_servers", Interrupted(backend._servers, rewrite))
        out = np.zeros((count, PAGE_BYTES), np.uint8)
        half = count // 2
        batch = make_extents(old, [(b"a", 0, 8, 0), (b"a", 8, half, 8), (b"a", half, half, half)])
        assert (await backend.read(batch, out)).tolist() == [OK, ABSENT, ABSENT]
        np.testing.assert_array_equal(out[:8], pages_of(b"a", 8))

    async def test_a_large_object_replaces_another_whole(self, backend: RedisBackend) -> None:
        for generation, count in enumerate((10, 10 * MIB_PAGES + 1, 9 * MIB_PAGES, 3)):
            await put_objects(backend, {b"a": pages_of(b"a", count, generation)}, PAGE_BYTES)
            found = await read_objects(backend, [b"a"], PAGE_BYTES)
            assert np.array_equal(found[b"a"], pages_of(b"a", count, generation))

    async def test_a_draft_is_not_listed_and_ends_by_itself(
        self, server: RedisServer, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = await put_objects(backend, {b"a": pages_of(b"a", 5)}, PAGE_BYTES)

        async def fall_silent(number: int) -> None:
            raise asyncio.CancelledError

        publisher = Publisher(
            Interrupted(backend._servers, fall_silent), Layout("kvtier", PAGE_BYTES)
        )
        with pytest.raises(asyncio.CancelledError):
            await publisher.put(objects(a=pages_of(b"a", 10 * MIB_PAGES)))
        (draft,) = server.client.keys("kvtier:{a}:*")
        assert 0 < server.client.ttl(draft) <= 600
        assert await list_keys(backend) == [b"a"]
        assert (await backend.stat([b"a"])).versions.tolist() == [old[b"a"]]

    @pytest.mark.parametrize("moment", [1, 2, 3, 4, 5, 6])
    async def test_a_draft_that_is_evicted_is_never_published(
        self, server: RedisServer, backend: RedisBackend, moment: int
    ) -> None:
        old = await put_objects(backend, {b"a": pages_of(b"a", 5)}, PAGE_BYTES)

        async def evict(number: int) -> None:
            if number == moment:
                assert server.client.delete(*server.client.keys("kvtier:{a}:*"))

        publisher = Publisher(Interrupted(backend._servers, evict), Layout("kvtier", PAGE_BYTES))
        result = await publisher.put(objects(a=pages_of(b"a", 10 * MIB_PAGES, 1)))
        assert result.status.tolist() == [FAILED]
        assert server.client.keys("kvtier:{a}:*") == []
        status, out = await read_pages(backend, old[b"a"], range(5))
        assert status == [OK] * 5
        np.testing.assert_array_equal(out, pages_of(b"a", 5))

    async def test_a_large_put_beside_small_ones_tells_each(self, backend: RedisBackend) -> None:
        sizes = {b"a": 3, b"b": 9 * MIB_PAGES, b"c": 1, b"d": 7 * MIB_PAGES, b"e": 2}
        await put_objects(
            backend, {key: pages_of(key, count) for key, count in sizes.items()}, PAGE_BYTES
        )
        found = await read_objects(backend, list(sizes), PAGE_BYTES)
        for key, count in sizes.items():
            assert np.array_equal(found[key], pages_of(key, count))


class TestNamespaces:
    async def test_namespaces_do_not_see_each_other(self, server: RedisServer) -> None:
        # Names that are patterns of each other, were they not escaped.
        first = await open_redis(server.url, namespace="k*")
        second = await open_redis(server.url, namespace="kv")
        await put_objects(first, {b"a": pages_of(b"a", 1)}, PAGE_BYTES)
        await put_objects(second, {b"b": pages_of(b"b", 1)}, PAGE_BYTES)
        assert await list_keys(first) == [b"a"]
        assert await list_keys(second) == [b"b"]
        assert (await first.stat([b"b"])).pages.tolist() == [-1]
        await first.close()
        await second.close()
