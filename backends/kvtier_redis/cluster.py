"""A Redis Cluster: which server holds which slot, and where a request goes when slots move."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError, TryAgainError

from kvtier.errors import BackendError
from kvtier_redis.commands import Reply, Request, Take, pack
from kvtier_redis.reasons import Patience
from kvtier_redis.server import Server
from kvtier_redis.servers import Servers

_TRIES: Final = 12
_PAUSE_S: Final = 0.05
"""Before what met a slot on its way is tried again; over all tries about half a second."""

_SLOTS: Final = Request(b"", pack(b"CLUSTER", b"SLOTS"))
_ASKING: Final = pack(b"ASKING")


class _Place(NamedTuple):
    host: str
    port: int


class _Way(NamedTuple):
    """Where a request goes next.

    Attributes:
        place: the server.
        asking: whether it must be told that it does not own the slot yet.
    """

    place: _Place
    asking: bool = False


class Cluster(Servers):
    """The masters of a Cluster: all requests go to them, so that a read sees what was put.

    A server that fails, fails its own requests; the map is asked for anew before the next call.

    Args:
        seed: any server of it.
        patience: with each of them.
    """

    def __init__(self, seed: Server, patience: Patience) -> None:
        self._patience = patience
        self._address = seed.address
        self._servers = {_Place(seed.address.host, seed.address.port): seed}
        self._owners: list[_Place | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._is_old = True
        self._updating = asyncio.Lock()

    async def exchange(self, requests: Sequence[Request], take: Take) -> None:
        await self._update()
        ways: dict[int, _Way | None] = dict.fromkeys(range(len(requests)))
        lost: dict[int, BackendError] = {}
        for number in range(_TRIES):
            shares: dict[_Way, _Share] = {}
            for index, way in ways.items():
                towards = way or self._way_of(requests[index])
                share = shares.setdefault(towards, _Share(towards, requests, take))
                share.indexes.append(index)
            is_last = number == _TRIES - 1
            await _together([self._send(share, is_last) for share in shares.values()])
            ways = {}
            for share in shares.values():
                ways |= share.again
                lost |= share.lost
            if not ways:
                break
            if None in ways.values():
                await asyncio.sleep(_PAUSE_S)
        if lost and len(lost) == len(requests):
            raise next(iter(lost.values()))
        for index, error in lost.items():
            take(index, [error])

    async def masters(self) -> list[Server]:
        await self._update()
        places = {place for place in self._owners if place is not None}
        return [self._server(place) for place in sorted(places)]

    async def spread(self, names: Iterator[bytes]) -> list[bytes]:
        await self._update()
        missing = {place for place in self._owners if place is not None}
        found: list[bytes] = []
        while missing:
            name = next(names)
            owner = self._owners[key_slot(name)]
            if owner in missing:
                missing.remove(owner)
                found.append(name)
        return found

    async def close(self) -> None:
        for server in self._servers.values():
            await server.close()

    async def _send(self, share: _Share, is_last: bool) -> None:
        server = self._server(share.way.place)
        try:
            await server.exchange(share.requests(), share.take if is_last else share.look)
        except BackendError as error:
            self._is_old = True
            share.lost = dict.fromkeys(share.indexes[share.answered :], error)
        self._is_old |= share.has_moved

    def _way_of(self, request: Request) -> _Way:
        slot = key_slot(request.name)
        owner = self._owners[slot]
        if owner is None:
            raise BackendError(f"origin {self._address}: no server of the Cluster owns slot {slot}")
        return _Way(owner)

    def _server(self, place: _Place) -> Server:
        if place not in self._servers:
            address = replace(self._address, host=place.host, port=place.port)
            self._servers[place] = Server(address, self._patience)
        return self._servers[place]

    async def _update(self) -> None:
        """Ask for the map of slots where it is known to be old."""
        if self._is_old:
            async with self._updating:
                await self._ask_for_map()

    async def _ask_for_map(self) -> None:
        if not self._is_old:  # another call waited less long
            return
        known = [place for place in dict.fromkeys(self._owners) if place is not None]
        failure: BackendError | None = None
        for place in dict.fromkeys([*known, *self._servers]):
            try:
                (reply,) = await self._server(place).ask(_SLOTS)
            except BackendError as error:
                failure = failure or error
                continue
            if isinstance(reply, list):
                self._owners = _owners(reply, place)
                self._is_old = False
                return
            failure = failure or BackendError(f"origin {self._address}: {reply}")
        assert failure is not None
        raise failure


class _Share:
    """What goes to one server in one try."""

    def __init__(self, way: _Way, requests: Sequence[Request], take: Take) -> None:
        self.way = way
        self.indexes: list[int] = []
        self.answered = 0
        self.again: dict[int, _Way | None] = {}
        self.lost: dict[int, BackendError] = {}
        self.has_moved = False
        self._requests = requests
        self._take = take

    def requests(self) -> list[Request]:
        asked = [self._requests[index] for index in self.indexes]
        if not self.way.asking:
            return asked
        return [Request(one.name, _ASKING + one.packed, one.replies + 1) for one in asked]

    def take(self, number: int, replies: list[Reply]) -> None:
        """Hand over the replies, whatever they are."""
        self.answered = number + 1
        self._take(self.indexes[number], replies[1:] if self.way.asking else replies)

    def look(self, number: int, replies: list[Reply]) -> None:
        """Hand over the replies, or remember where else to ask."""
        refusal = next((reply for reply in replies if isinstance(reply, ResponseError)), None)
        # A MovedError is an AskError too.
        if not isinstance(refusal, AskError | TryAgainError | ClusterDownError):
            self.take(number, replies)
            return
        self.answered = number + 1
        index = self.indexes[number]
        self.has_moved |= not isinstance(refusal, TryAgainError)
        self.again[index] = None
        if isinstance(refusal, AskError):
            place = _Place(refusal.host or self.way.place.host, refusal.port)
            if isinstance(refusal, MovedError):
                self.again[index] = _Way(place)
            elif self._requests[index].replies == 1:
                # A transaction cannot be asked of the server that a slot is moving to: it waits.
                self.again[index] = _Way(place, asking=True)


def _owners(reply: list[Any], place: _Place) -> list[_Place | None]:
    """The master of each slot, from the reply of CLUSTER SLOTS."""
    owners: list[_Place | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    for first, last, (host, port, *_), *_ in reply:
        # A server that does not know its own name gives none: it is the one that was asked.
        owner = _Place(host.decode() if host else place.host, port)
        owners[first : last + 1] = [owner] * (last + 1 - first)
    return owners


async def _together(calls: list[Coroutine[Any, Any, None]]) -> None:
    """Await all; none of them runs on after this ended."""
    if len(calls) == 1:
        await calls[0]
        return
    try:
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(call)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
