"""What the redis backend does when slots of a Cluster move, and when one of its servers fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import pytest_asyncio
from kvtier_redis import RedisBackend
from redis.crc import key_slot
from redis_servers import (
    ACL_RULE,
    CLUSTER_ACL_RULE,
    RedisServer,
    flush,
    name_of,
    owner_of,
    redis_cluster,
)

from kvtier.errors import BackendError
from kvtier.pages import U8, PageStatus
from kvtier.testing.batches import list_keys, make_extents, make_objects, put_objects, read_objects
from kvtier.testing.pages import make_pages

PAGE_BYTES = 512
KEYS = [b"%d" % number for number in range(30)]
OK, ABSENT, FAILED = PageStatus.OK, PageStatus.ABSENT, PageStatus.FAILED

pytestmark = pytest.mark.asyncio


def pages_of(key: bytes, count: int = 3, generation: int = 0) -> U8:
    return make_pages(key, generation, count, PAGE_BYTES)


@dataclass
class Move:
    """The slot of a key on its way from its server to another one."""

    key: bytes
    source: RedisServer
    target: RedisServer
    servers: list[RedisServer]

    @property
    def slot(self) -> int:
        return key_slot(name_of(self.key))

    def begin(self) -> None:
        source, target = _identity(self.source), _identity(self.target)
        self.target.client.execute_command("CLUSTER SETSLOT", self.slot, "IMPORTING", source)
        self.source.client.execute_command("CLUSTER SETSLOT", self.slot, "MIGRATING", target)

    def carry(self) -> None:
        """Move what is in the slot."""
        names = self.source.client.execute_command("CLUSTER GETKEYSINSLOT", self.slot, 100)
        for name in names:
            self.source.client.migrate("127.0.0.1", self.target.port, name, 0, 5000)

    def finish(self) -> None:
        target = _identity(self.target)
        for server in (self.target, self.source, *self.servers):
            server.client.execute_command("CLUSTER SETSLOT", self.slot, "NODE", target)

    def back(self) -> Move:
        return Move(self.key, self.target, self.source, self.servers)

    def run(self) -> None:
        self.begin()
        self.carry()
        self.finish()


def _identity(server: RedisServer) -> str:
    identity = server.client.execute_command("CLUSTER MYID")
    assert isinstance(identity, str | bytes)
    return identity if isinstance(identity, str) else identity.decode()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


@pytest_asyncio.fixture
async def backend(servers: list[RedisServer]) -> AsyncIterator[RedisBackend]:
    flush(servers)
    options = {"url": servers[2].url, "cluster": True, "timeout_s": 1, "connect_timeout_s": 1}
    backend = await RedisBackend.open(options, PAGE_BYTES)
    yield backend
    await backend.close()


@pytest.fixture
def move(servers: list[RedisServer]) -> Move:
    """Of key ``0``, from the server that has it to the next."""
    source = owner_of(servers, b"0")
    return Move(b"0", source, servers[servers.index(source) - 1], servers)


async def put_all(backend: RedisBackend, generation: int = 0) -> dict[bytes, int]:
    objects = {key: pages_of(key, generation=generation) for key in KEYS}
    return await put_objects(backend, objects, PAGE_BYTES)


async def read_all(backend: RedisBackend, versions: dict[bytes, int]) -> list[int]:
    """Read everything; bytes that are OK must be right. The status of each key."""
    out = np.zeros((3 * len(KEYS), PAGE_BYTES), np.uint8)
    extents = [(key, 0, 3, 3 * row) for row, key in enumerate(KEYS)]
    status = await backend.read(make_extents(versions, extents), out)
    for row, key in enumerate(KEYS):
        if status[row] == OK:
            np.testing.assert_array_equal(out[3 * row : 3 * row + 3], pages_of(key))
    return status.tolist()


class TestMoving:
    async def test_reads_follow_a_slot_that_has_moved(
        self, backend: RedisBackend, move: Move
    ) -> None:
        versions = await put_all(backend)
        move.run()
        try:
            for _ in range(2):  # told once, known then
                assert await read_all(backend, versions) == [OK] * len(KEYS)
        finally:
            move.back().run()
        assert await read_all(backend, versions) == [OK] * len(KEYS)

    async def test_puts_and_deletes_follow_a_slot_that_has_moved(
        self, backend: RedisBackend, move: Move
    ) -> None:
        await put_all(backend, generation=1)
        move.run()
        try:
            versions = await put_all(backend)
            assert await read_all(backend, versions) == [OK] * len(KEYS)
        finally:
            move.back().run()
        assert not (await backend.delete(KEYS)).any()
        assert (await backend.stat(KEYS)).pages.tolist() == [-1] * len(KEYS)

    async def test_reads_do_not_notice_a_slot_on_its_way(
        self, backend: RedisBackend, move: Move
    ) -> None:
        versions = await put_all(backend)
        move.begin()
        try:
            assert await read_all(backend, versions) == [OK] * len(KEYS)
            move.carry()
            assert await read_all(backend, versions) == [OK] * len(KEYS)
            assert (await backend.stat(KEYS)).versions.tolist() == list(versions.values())
        finally:
            move.finish()
            move.back().run()

    async def test_a_put_into_a_slot_on_its_way_fails_alone_and_succeeds_afterwards(
        self, backend: RedisBackend, move: Move
    ) -> None:
        old = await put_all(backend)
        move.begin()
        try:
            move.carry()
            objects = {key: pages_of(key, 2, 1) for key in KEYS[:3]}
            result = await backend.put(make_objects(objects, PAGE_BYTES))
            assert result.status.tolist() == [FAILED, OK, OK]
            found = await read_objects(backend, [move.key], PAGE_BYTES)
            np.testing.assert_array_equal(found[move.key], pages_of(move.key))
        finally:
            move.finish()
        assert (await backend.stat([move.key])).versions.tolist() == [old[move.key]]
        await put_objects(backend, objects, PAGE_BYTES)
        move.back().run()
        assert not (await backend.delete(KEYS)).any()

    async def test_a_large_object_follows_its_slot(self, backend: RedisBackend, move: Move) -> None:
        move.run()
        try:
            pages = pages_of(move.key, 10_000)
            await put_objects(backend, {move.key: pages}, PAGE_BYTES)
            found = await read_objects(backend, [move.key], PAGE_BYTES)
            assert np.array_equal(found[move.key], pages)
            await backend.delete([move.key])
        finally:
            move.back().run()


class TestFailing:
    async def test_a_frozen_server_fails_its_own_objects_only(
        self, backend: RedisBackend, servers: list[RedisServer], move: Move
    ) -> None:
        versions = await put_all(backend)
        frozen = {key for key in KEYS if owner_of(servers, key) is move.source}
        move.source.freeze()
        try:
            status = await read_all(backend, versions)
            assert {key for key, one in zip(KEYS, status, strict=True) if one} == frozen
            assert set(status) == {OK, FAILED}
            result = await backend.put(
                make_objects({key: pages_of(key) for key in KEYS}, PAGE_BYTES)
            )
            lost = zip(KEYS, result.status.tolist(), strict=True)
            assert {key for key, one in lost if one} == frozen
            with pytest.raises(BackendError, match="no"):
                await backend.stat(KEYS)
            with pytest.raises(BackendError):
                await backend.stat(sorted(frozen))
            with pytest.raises(BackendError):
                await list_keys(backend)
        finally:
            move.source.thaw()
        versions = await put_all(backend)
        assert await read_all(backend, versions) == [OK] * len(KEYS)
        assert sorted(await list_keys(backend)) == sorted(KEYS)

    async def test_any_server_of_the_cluster_opens_it(self, servers: list[RedisServer]) -> None:
        for server in servers:
            options = {"url": server.url, "cluster": True}
            backend = await RedisBackend.open(options, PAGE_BYTES)
            assert (await backend.stat(KEYS)).pages.shape == (len(KEYS),)
            await backend.close()

    @pytest.mark.parametrize("missing", ["+cluster|slots", "+asking", "+unlink"])
    async def test_a_right_that_one_master_does_not_give_is_refused(
        self, servers: list[RedisServer], missing: str
    ) -> None:
        rule = (*ACL_RULE, *CLUSTER_ACL_RULE)
        for server in servers:
            server.client.execute_command("ACL", "SETUSER", "kv", "reset", "on", ">pw", *rule)
        url = f"redis://kv:pw@127.0.0.1:{servers[0].port}"
        backend = await RedisBackend.open({"url": url, "cluster": True}, PAGE_BYTES)
        await backend.close()
        # The map of slots is asked of the server that opens, the others of every master.
        server = servers[0] if "cluster" in missing else servers[1]
        server.client.execute_command("ACL", "SETUSER", "kv", missing.replace("+", "-"))
        with pytest.raises(BackendError, match=missing[1:].split("|", maxsplit=1)[0]) as caught:
            await RedisBackend.open({"url": url, "cluster": True}, PAGE_BYTES)
        assert "permissions" in str(caught.value)

    async def test_a_wrong_format_is_seen_whichever_server_has_it(
        self, backend: RedisBackend, servers: list[RedisServer]
    ) -> None:
        for server in servers:
            with pytest.raises(ValueError, match="set page_bytes to 512"):
                await RedisBackend.open({"url": server.url, "cluster": True}, 4096)
