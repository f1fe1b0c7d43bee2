"""The contract against real servers: one over TCP, a Unix socket and TLS, and a Cluster."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, ClassVar

import pytest
import pytest_asyncio
from certificates import Authority
from kvtier_redis import RedisBackend
from redis_servers import (
    ACL_RULE,
    RedisServer,
    flush,
    get_object,
    owner_of,
    redis_cluster,
    redis_server,
    set_object,
)
from servers import free_port

from kvtier.backend import Backend
from kvtier.pages import U8
from kvtier.testing.batches import put_objects
from kvtier.testing.contract import BackendContract

Options = Mapping[str, Any]


class OverRedis(BackendContract):
    """The contract with the fixtures ``servers`` and ``options``, and hooks of redis-py."""

    servers: list[RedisServer]
    options: Options

    @pytest_asyncio.fixture
    async def backend(self, servers: list[RedisServer], options: Options) -> AsyncIterator[Backend]:
        flush(servers)
        self.servers, self.options = servers, options
        backend = await RedisBackend.open(options, self.page_bytes)
        yield backend
        await backend.close()

    def pages_of(self, backend: Backend, size_bytes: int) -> int:
        # A third of what the suite asks for, which one of the doors takes whole: for the time.
        return super().pages_of(backend, size_bytes // 3)

    def server_of(self, key: bytes) -> RedisServer:
        return self.servers[0]

    async def raw_get(self, backend: Backend, key: bytes) -> U8 | None:
        return get_object(self.server_of(key).client, key, self.page_bytes)

    async def raw_set(self, backend: Backend, key: bytes, pages: U8) -> None:
        set_object(self.server_of(key).client, key, pages)

    async def reopen(self, backend: Backend) -> Backend:
        return await RedisBackend.open(self.options, self.page_bytes)


@pytest.fixture(scope="module")
def doors(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RedisServer, dict[str, Options]]]:
    """One server that is open on TCP, a socket, and to user ``kv`` with a certificate on TLS."""
    directory = tmp_path_factory.mktemp("redis")
    authority = Authority(directory)
    cert_file, key_file = authority.sign("server")
    tls_port, socket = free_port(), directory / "socket"
    options = [
        *("--unixsocket", str(socket), "--tls-port", str(tls_port)),
        *("--tls-ca-cert-file", str(authority.ca_file)),
        *("--tls-cert-file", str(cert_file), "--tls-key-file", str(key_file)),
    ]
    client_cert_file, client_key_file = authority.sign("client")
    with redis_server(directory, *options) as server:
        server.client.execute_command("ACL", "SETUSER", "kv", "on", ">p@ss:/word", *ACL_RULE)
        yield (
            server,
            {
                "tcp": {"url": server.url},
                "unix": {"url": f"unix://{socket}?db=3"},
                "tls": {
                    "url": f"rediss://kv:p%40ss%3A%2Fword@127.0.0.1:{tls_port}",
                    "ca_file": str(authority.ca_file),
                    "cert_file": str(client_cert_file),
                    "key_file": str(client_key_file),
                },
            },
        )


class OverOneServer(OverRedis):
    door: ClassVar[str]

    @pytest.fixture
    def servers(self, doors: tuple[RedisServer, dict[str, Options]]) -> list[RedisServer]:
        return [doors[0]]

    @pytest.fixture
    def options(self, doors: tuple[RedisServer, dict[str, Options]]) -> Options:
        return doors[1][self.door]


class TestRedisOverTcp(OverOneServer):
    door = "tcp"

    def pages_of(self, backend: Backend, size_bytes: int) -> int:
        return size_bytes // self.page_bytes

    @pytest.mark.asyncio
    async def test_a_listing_remembers_no_names(self, backend: Backend) -> None:
        objects = 20_000
        commands = self.servers[0].client.pipeline(transaction=False)
        for number in range(objects):
            commands.hset(f"kvtier:{{{number:0200}}}", "h", "")
        commands.execute()
        listed = 0
        tracemalloc.start()
        try:
            async for _ in backend.keys():
                listed += 1
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert listed == objects
        assert peak_bytes < 200 * objects / 2


class TestRedisOverUnixSocket(OverOneServer):
    door = "unix"

    async def raw_get(self, backend: Backend, key: bytes) -> U8 | None:
        with self.servers[0].database(3) as client:
            return get_object(client, key, self.page_bytes)

    async def raw_set(self, backend: Backend, key: bytes, pages: U8) -> None:
        with self.servers[0].database(3) as client:
            set_object(client, key, pages)


class TestRedisOverTls(OverOneServer):
    door = "tls"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


class TestRedisCluster(OverRedis):
    @pytest.fixture
    def servers(self, cluster: list[RedisServer]) -> list[RedisServer]:
        return cluster

    @pytest.fixture
    def options(self, cluster: list[RedisServer]) -> Options:
        return {"url": cluster[1].url, "cluster": True}

    def server_of(self, key: bytes) -> RedisServer:
        return owner_of(self.servers, key)

    @pytest.mark.asyncio
    async def test_objects_are_spread_over_the_servers(self, backend: Backend) -> None:
        await put_objects(backend, {b"%d" % key: self.make(b"", 1) for key in range(60)}, 512)
        held = [server.client.dbsize() for server in self.servers]
        assert sum(held) == 61  # with what tells the format
        assert min(held) > 5
