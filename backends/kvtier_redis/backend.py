"""The redis backend: batches become pipelines of a few large commands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from kvtier.backend import (
    Backend,
    Capability,
    ExtentBatch,
    ObjectBatch,
    ObjectStats,
    PutResult,
    check_extents,
    check_keys,
    check_objects,
    check_options,
    empty_status,
)
from kvtier.errors import BackendError, ClosedError, SettingsError
from kvtier.pages import U8, PageStatus, check_page_bytes
from kvtier_redis.address import Address, parse_address
from kvtier_redis.commands import Reply, Request, pack
from kvtier_redis.layout import HEADER_FIELD, PAGES_MAX, Layout
from kvtier_redis.opening import open_servers
from kvtier_redis.reading import PageReader
from kvtier_redis.reasons import Patience
from kvtier_redis.servers import Servers
from kvtier_redis.writing import Publisher

_CONNECTIONS_MAX: Final = 64
_NAMESPACE_BYTES_MAX: Final = 128
_KEYS_AT_ONCE: Final = 1 << 14
_SCAN_COUNT: Final = b"1000"

_OPTIONS: Final = {
    "url": str,
    "cluster": bool,
    "namespace": str,
    "ca_file": str,
    "cert_file": str,
    "key_file": str,
    "connections": int,
    "connect_timeout_s": float,
    "timeout_s": float,
}


class RedisBackend(Backend):
    """Objects in Redis or Valkey, one hash each.

    Options:
        url: ``redis://[USER:PASSWORD@]HOST[:PORT][/DB]``, ``rediss://`` for TLS, or
            ``unix://[USER:PASSWORD@]/PATH[?db=DB]``.
        cluster: the server belongs to a Redis Cluster; false by default.
        namespace: what all keys begin with; ``kvtier`` by default.
        ca_file: certificates to trust with TLS, instead of those of the system.
        cert_file: certificate that the client shows.
        key_file: its key, where ``cert_file`` does not hold it.
        connections: to each server at most; 4 by default. A batch takes one while it runs.
        connect_timeout_s: how long making one may take; 5 by default.
        timeout_s: how long the answer to 8 MiB of a batch may take; 30 by default.

    A cancelled call drops its connection, so that no later one gets its replies. A server that
    evicts objects makes them ABSENT, whole.
    """

    capability = Capability(persistent=True, shared=True, remote=True, object_pages_max=PAGES_MAX)

    def __init__(self, servers: Servers, layout: Layout, address: Address) -> None:
        self._servers = servers
        self._layout = layout
        self._address = address
        self._publisher = Publisher(servers, layout)
        self._closed = False

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> RedisBackend:
        check_options(options, _OPTIONS, "redis", required=("url",))
        check_page_bytes(page_bytes)
        address = parse_address(options)
        is_cluster = options.get("cluster", False)
        if is_cluster and (address.scheme == "unix" or address.database):
            raise SettingsError(
                "option 'cluster' of backend 'redis' goes with a host and with database 0 only"
            )
        connections = options.get("connections", 4)
        if not 1 <= connections <= _CONNECTIONS_MAX:
            raise SettingsError(
                f"option 'connections' of backend 'redis' is {connections}: "
                f"1 to {_CONNECTIONS_MAX} are possible"
            )
        patience = Patience(
            connect_s=_seconds(options, "connect_timeout_s", 5.0),
            answer_s=_seconds(options, "timeout_s", 30.0),
            connections=connections,
        )
        layout = Layout(_namespace(options), page_bytes)
        servers = await open_servers(
            address, is_cluster=is_cluster, layout=layout, patience=patience
        )
        return cls(servers, layout, address)

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        self._check_open()
        check_keys(keys, self.capability)
        stats = ObjectStats(np.full(len(keys), -1, np.int64), np.zeros(len(keys), np.uint64))

        def take(index: int, reply: Reply) -> None:
            if isinstance(reply, Exception) and not str(reply).startswith("WRONGTYPE"):
                raise self._refused(reply)
            found = self._layout.read_header(reply)
            if found is not None:
                stats.pages[index], stats.versions[index] = found

        await self._each(keys, (b"HGET", HEADER_FIELD), take)
        return stats

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        self._check_open()
        check_extents(batch, out, self._layout.page_bytes, self.capability)
        reader = PageReader(batch, out, self._layout)
        for window in reader.windows():
            requests = [reader.request(command) for command in window]
            await self._servers.exchange(requests, partial(reader.take, window))
        return reader.status

    async def put(self, batch: ObjectBatch) -> PutResult:
        self._check_open()
        check_objects(batch, self._layout.page_bytes, self.capability)
        return await self._publisher.put(batch)

    async def delete(self, keys: Sequence[bytes]) -> U8:
        self._check_open()
        check_keys(keys, self.capability)
        status = empty_status(len(keys))

        def take(index: int, reply: Reply) -> None:
            if isinstance(reply, Exception):
                status[index] = PageStatus.FAILED
            elif reply == 0:
                status[index] = PageStatus.ABSENT

        await self._each(keys, (b"UNLINK",), take)
        return status

    async def keys(self) -> AsyncIterator[bytes]:
        self._check_open()
        scan = (b"MATCH", self._layout.pattern, b"COUNT", _SCAN_COUNT, b"TYPE", b"hash")
        for master in await self._servers.masters():
            cursor = b"0"
            while True:
                (reply,) = await master.ask(Request(b"", pack(b"SCAN", cursor, *scan)))
                if isinstance(reply, Exception):
                    raise self._refused(reply)
                cursor, names = reply
                for name in names:
                    yield self._layout.key_of(name)
                    self._check_open()
                if cursor == b"0":
                    break

    async def close(self) -> None:
        self._closed = True
        await self._servers.close()

    async def _each(
        self,
        keys: Sequence[bytes],
        command: tuple[bytes, ...],
        take: Callable[[int, Reply], None],
    ) -> None:
        """Send one short command for each key, whose name comes after its first word."""
        for first in range(0, len(keys), _KEYS_AT_ONCE):
            names = [self._layout.name_of(key) for key in keys[first : first + _KEYS_AT_ONCE]]
            requests = [Request(name, pack(command[0], name, *command[1:])) for name in names]

            def take_some(number: int, replies: list[Reply], first: int = first) -> None:
                take(first + number, replies[0])

            await self._servers.exchange(requests, take_some)

    def _refused(self, error: Exception) -> BackendError:
        if isinstance(error, BackendError):
            return error
        return BackendError(f"origin {self._address}: {error}")

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this redis backend is closed: open another")


def _namespace(options: Mapping[str, Any]) -> str:
    namespace: str = options.get("namespace", "kvtier")
    if not 0 < len(namespace.encode()) <= _NAMESPACE_BYTES_MAX or set(namespace) & set("{}"):
        raise SettingsError(
            f"option 'namespace' of backend 'redis' is {namespace!r}: it must have 1 to "
            f"{_NAMESPACE_BYTES_MAX} bytes, and no braces, which tell the slot of a Cluster"
        )
    return namespace


def _seconds(options: Mapping[str, Any], name: str, default: float) -> float:
    seconds = float(options.get(name, default))
    if not 0 < seconds < float("inf"):
        raise SettingsError(f"option {name!r} of backend 'redis' is {seconds}: it must be over 0")
    return seconds
