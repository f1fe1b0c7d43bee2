"""Redis servers for tests: alone, with TLS, as a Cluster; on loopback and in a new directory."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import redis
from redis.crc import key_slot
from servers import READY_S, end, free_port, required, start

from kvtier.pages import U8

NAMESPACE = "kvtier"

ACL_RULE = (
    *("~kvtier:*", "+select", "+multi", "+exec", "+scan", "+set", "+get"),
    *("+hset", "+hget", "+hmget", "+hlen", "+pexpire", "+persist", "+rename", "+unlink"),
)
"""What a user needs, as docs/backends.md says."""

CLUSTER_ACL_RULE = ("+cluster|slots", "+asking")
"""And with a Cluster."""


class RedisServer:
    """One ``redis-server``.

    Attributes:
        port: where it listens.
        client: of redis-py, that looks at the server without kvtier.
    """

    def __init__(self, directory: Path, *options: str, port: int | None = None) -> None:
        self.directory = directory
        self.port = free_port() if port is None else port
        self._options = options
        self.start()
        self.client = redis.Redis(port=self.port, socket_timeout=10)

    def start(self) -> None:
        """Start it, with what it saved, if anything."""
        command = [
            *(required("redis-server"), "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--save", "", "--dir", str(self.directory), "--enable-debug-command", "yes"),
        ]
        self.process = start([*command, *self._options], self.directory, b"Ready to accept")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def database(self, number: int) -> redis.Redis:
        """A client of another database than 0."""
        return redis.Redis(port=self.port, db=number, socket_timeout=10)

    def freeze(self) -> None:
        """It keeps its connections, and does nothing more."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.client.close()
        end(self.process)


@contextlib.contextmanager
def redis_server(directory: Path, *options: str) -> Iterator[RedisServer]:
    """A server, ended afterwards."""
    server = RedisServer(directory, *options)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def redis_cluster(directory: Path) -> Iterator[list[RedisServer]]:
    """A Cluster of three masters, made by ``redis-cli``."""
    with contextlib.ExitStack() as stack:
        servers = []
        for number in range(3):
            home = directory / f"node-{number}"
            home.mkdir()
            options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
            servers.append(stack.enter_context(redis_server(home, *options)))
        addresses = [f"127.0.0.1:{server.port}" for server in servers]
        command = [required("redis-cli"), "--cluster", "create", *addresses, "--cluster-yes"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        wait_until_agreed(servers)
        yield servers


def wait_until_agreed(servers: list[RedisServer]) -> None:
    """Wait until every server of a Cluster says that all slots are served."""
    deadline = time.monotonic() + READY_S
    while not all(_is_agreed(server) for server in servers):
        assert time.monotonic() < deadline, "the Cluster did not come together"
        time.sleep(0.02)


def _is_agreed(server: RedisServer) -> bool:
    found = server.client.cluster("info")
    return found["cluster_state"] == "ok" and int(found["cluster_slots_ok"]) == 16384


def flush(servers: list[RedisServer]) -> None:
    """Remove everything."""
    for server in servers:
        server.client.flushall()


def name_of(key: bytes) -> bytes:
    """The hash that holds an object, as docs/backends.md says."""
    escaped = key.replace(b"%", b"%25").replace(b"}", b"%7D")
    return NAMESPACE.encode() + b":{" + escaped + b"}"


def owner_of(servers: list[RedisServer], key: bytes) -> RedisServer:
    """The server of a key, as redis-cli shares the slots of a Cluster out: in runs, alike."""
    return servers[min(key_slot(name_of(key)) * len(servers) // 16384, len(servers) - 1)]


def field_of(page: int) -> bytes:
    return page.to_bytes(4, "big")


def get_object(client: redis.Redis, key: bytes, page_bytes: int) -> U8 | None:
    """The pages of an object, read without kvtier."""
    held = client.hgetall(name_of(key))
    if not held:
        return None
    assert isinstance(held, dict)
    pages = [held[field_of(page)] for page in range(len(held) - 1)]
    return np.frombuffer(b"".join(pages), np.uint8).reshape(-1, page_bytes)


def set_object(client: redis.Redis, key: bytes, pages: U8, version: int = 7) -> None:
    """Put an object without kvtier."""
    header = (
        version.to_bytes(8, "little")
        + len(pages).to_bytes(4, "little")
        + pages.shape[1].to_bytes(4, "little")
    )
    fields = {field_of(number): page.tobytes() for number, page in enumerate(pages)}
    client.hset(name_of(key), mapping={b"h": header, **fields})
