"""The tcp backend: what ``kvtier serve`` exports, as if it were here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

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
)
from kvtier.errors import ClosedError, SettingsError
from kvtier.pages import U8, check_page_bytes
from kvtier.wire.codec import ITEMS_MAX, KEY_BYTES_MAX
from kvtier.wire.frames import FrameLimits
from kvtier.wire.messages import (
    Delete,
    DeleteReply,
    Keys,
    KeysReply,
    Message,
    Put,
    PutReply,
    Read,
    ReadReply,
    Stat,
    StatReply,
    Welcome,
)
from kvtier_tcp.address import parse_address
from kvtier_tcp.connection import Connection, Reply, connect
from kvtier_tcp.cutting import cut_items, cut_pages, part_of
from kvtier_tcp.placement import Placement
from kvtier_tcp.pool import Pool
from kvtier_tcp.uploading import upload

T = TypeVar("T")
Number = TypeVar("Number", bound=np.generic)

_CONNECTIONS_MAX: Final = 64
_REQUEST_BYTES: Final = 4 << 20
"""Payload from which on a batch goes as several requests, so that reading overlaps with sending."""

_OPTIONS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "url": str,
    "token": str,
    "token_file": (str, Path),
    "token_env": str,
    "ca_file": (str, Path),
    "cert_file": (str, Path),
    "key_file": (str, Path),
    "server_name": str,
    "cleartext": bool,
    "connections": int,
    "connect_timeout_s": float,
    "timeout_s": float,
}


class TcpBackend(Backend):
    """A store on another host.

    Options:
        url: ``tls://HOST:PORT`` of a ``kvtier serve``, or ``tcp://HOST:PORT`` for clear text.
        token, token_file, token_env: what that server asks of its clients, or a file or an
            environment variable that holds it. Settings hide the first in what they show.
        ca_file: certificates of the authorities that may have signed the server's; by default
            those that this system trusts.
        cert_file, key_file: what this side shows, where the server wants a certificate.
        server_name: the name in the server's certificate, where it is not the host of the url.
        cleartext: send a token over ``tcp://`` beyond this machine.
        connections: connections used in turn; 2 by default.
        connect_timeout_s: how long making one may take; 5 by default.
        timeout_s: how long a request may take; 30 by default.

    A lost or silent server raises :class:`BackendError` in every call that waits for it; the
    next call tries once to connect again.
    """

    def __init__(self, pool: Pool, welcome: Welcome, timeout_s: float) -> None:
        self._pool = pool
        self._page_bytes = welcome.page_bytes
        self._timeout_s = timeout_s
        self._closed = False
        payload_bytes_max = min(welcome.payload_bytes_max, FrameLimits().payload_bytes_max)
        self._items_max = min(welcome.items_max, ITEMS_MAX)
        self._frame_pages = payload_bytes_max // welcome.page_bytes
        self._request_pages = max(1, min(_REQUEST_BYTES, payload_bytes_max) // welcome.page_bytes)
        self.capability = _capability(welcome.capability, self._frame_pages)

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> TcpBackend:
        check_options(options, _OPTIONS, "tcp", required=("url",))
        check_page_bytes(page_bytes)
        address = parse_address(options)
        size = options.get("connections", 2)
        if not 1 <= size <= _CONNECTIONS_MAX:
            raise SettingsError(
                f"option 'connections' of backend 'tcp' is {size}: "
                f"1 to {_CONNECTIONS_MAX} are possible"
            )
        connect_timeout_s = _seconds(options, "connect_timeout_s", 5.0)
        timeout_s = _seconds(options, "timeout_s", 30.0)
        pool = Pool(lambda: connect(address, page_bytes, connect_timeout_s), size)
        try:
            connection = await pool.take()
        except BaseException:  # a cancelled caller leaves an attempt behind
            await pool.close(ClosedError, "this backend was never opened")
            raise
        assert connection.welcome is not None
        return cls(pool, connection.welcome, timeout_s)

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        self._check_open()
        check_keys(keys, self.capability)
        replies = await _together(
            [
                self._ask(Stat(tuple(keys[part])), StatReply)
                for part in cut_items(len(keys), self._items_max)
            ]
        )
        return ObjectStats(
            pages=_joined([reply.stats.pages for reply in replies], np.int64),
            versions=_joined([reply.stats.versions for reply in replies], np.uint64),
        )

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        self._check_open()
        check_extents(batch, out, self._page_bytes, self.capability)
        items = max(len(batch), len(batch.keys))
        if len(batch) and items <= self._items_max and batch.pages <= self._request_pages:
            return await self._read_part(batch, out)
        parts = cut_pages(batch.page_count, self._request_pages, self._items_max)
        statuses = await _together([self._read_part(part_of(batch, part), out) for part in parts])
        return _joined(statuses, np.uint8)

    async def put(self, batch: ObjectBatch) -> PutResult:
        self._check_open()
        check_objects(batch, self._page_bytes, self.capability)
        rows = [0, *np.cumsum(batch.page_counts, dtype=np.int64).tolist()]
        results = await _together(
            [
                self._put_some(batch, part, batch.payload[rows[part.start] : rows[part.stop]])
                for part in cut_pages(batch.page_counts, self._request_pages, self._items_max)
            ]
        )
        return PutResult(
            status=_joined([result.status for result in results], np.uint8),
            versions=_joined([result.versions for result in results], np.uint64),
        )

    async def delete(self, keys: Sequence[bytes]) -> U8:
        self._check_open()
        check_keys(keys, self.capability)
        replies = await _together(
            [
                self._ask(Delete(tuple(keys[part])), DeleteReply)
                for part in cut_items(len(keys), self._items_max)
            ]
        )
        return _joined([reply.status for reply in replies], np.uint8)

    async def keys(self) -> AsyncIterator[bytes]:
        self._check_open()
        connection = await self._take()
        cursor = 0
        while True:
            reply = await connection.ask(Keys(cursor), KeysReply, self._timeout_s)
            for key in reply.keys:
                yield key
                self._check_open()
            cursor = reply.cursor
            if cursor == 0:
                return

    async def close(self) -> None:
        self._closed = True
        await self._pool.close(ClosedError, "this backend was closed")

    async def _ask(self, message: Message, expected: type[Reply]) -> Reply:
        connection = await self._take()
        return await connection.ask(message, expected, self._timeout_s)

    async def _put_some(self, batch: ObjectBatch, part: slice, payload: U8) -> PutResult:
        """Put objects that fit into one request, or one object of any size."""
        connection = await self._take()
        if len(payload) > self._frame_pages:
            key, part_pages = batch.keys[part.start], self._request_pages
            return await upload(connection, key, payload, part_pages, self._timeout_s)
        message = Put(batch.keys[part], batch.page_counts[part])
        reply = await connection.ask(message, PutReply, self._timeout_s, payload=payload)
        return reply.result

    async def _read_part(self, batch: ExtentBatch, out: U8) -> U8:
        connection = await self._take()
        placement = Placement(batch, out)
        reply = await connection.ask(Read(batch), ReadReply, self._timeout_s, placement=placement)
        return reply.status.copy()

    async def _take(self) -> Connection:
        connection = await self._pool.take()
        self._check_open()
        return connection

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this tcp backend is closed: open another")


async def _together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Await all; the first failure ends the others before it is raised."""
    if len(calls) == 1:
        return [await calls[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return [task.result() for task in tasks]


def _joined(parts: Sequence[NDArray[Any]], dtype: type[Number]) -> NDArray[Number]:
    """The arrays of several replies as one; there may be none."""
    return np.concatenate([np.empty(0, dtype), *parts])


def _capability(there: Capability, frame_pages: int) -> Capability:
    """What can be done from here: what can be done there, as far as it fits into frames."""
    return replace(
        there,
        shared=True,
        remote=True,
        key_bytes_max=min(there.key_bytes_max, KEY_BYTES_MAX),
        extent_pages_max=min(there.extent_pages_max, frame_pages),
    )


def _seconds(options: Mapping[str, Any], name: str, default: float) -> float:
    seconds = float(options.get(name, default))
    if not 0 < seconds < float("inf"):
        raise SettingsError(f"option {name!r} of backend 'tcp' is {seconds}: it must be over 0")
    return seconds
