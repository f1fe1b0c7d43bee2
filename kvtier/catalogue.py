"""The catalogue: which object a key names now, here and at the origin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from kvtier.backend import ObjectBatch, ObjectStats, PutResult
from kvtier.directory import ObjectDirectory, ObjectEntry
from kvtier.errors import BackendError, LimitError
from kvtier.pages import U8, U64

_ATTEMPTS: Final = 8


class ObjectStore(Protocol):
    """What the catalogue asks of an origin; a :class:`kvtier.backend.Backend` is one."""

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats: ...

    async def put(self, batch: ObjectBatch) -> PutResult: ...

    async def delete(self, keys: Sequence[bytes]) -> U8: ...


class Catalogue:
    """Keeps the directory and the origin in step, and the tiers free of what neither knows.

    Args:
        directory: what is known here.
        origin: asked for what is not, or None.
        invalidate: forgets PageIds (u64[n]) in every tier.
    """

    def __init__(
        self,
        directory: ObjectDirectory,
        origin: ObjectStore | None,
        invalidate: Callable[[U64], None],
    ) -> None:
        self.directory = directory
        self._origin = origin
        self._invalidate = invalidate
        self._changing: dict[bytes, asyncio.Future[None]] = {}

    @property
    def origin(self) -> ObjectStore | None:
        """What is asked for unknown keys."""
        return self._origin

    async def find(self, keys: Sequence[bytes]) -> list[ObjectEntry | None]:
        """The present entry of each key; the origin is asked for those unknown here.

        Raises:
            BackendError: the origin cannot say.
            LimitError: the directory cannot remember so many at once.
        """
        directory = self.directory
        distinct = tuple(dict.fromkeys(keys))
        if len(distinct) > directory.objects_max:
            raise LimitError(
                f"{len(distinct)} keys at once: objects_max is {directory.objects_max}"
            )
        for _ in range(_ATTEMPTS):
            await self._settled(distinct)
            unknown = _unknown(distinct, directory)
            if not unknown or self._origin is None:
                return directory.find(keys)
            stats = await self._origin.stat(unknown)
            _check_answer("stat", len(unknown), stats.pages, stats.versions)
            # Meanwhile a key may have been written here, or one that was known retired: then what
            # the origin said is old, or not all, and it is asked once more.
            if set(_unknown(distinct, directory)) <= set(unknown) and not any(
                key in self._changing for key in unknown
            ):
                self._publish_found(unknown, stats)
                return directory.find(keys)
        raise LimitError(
            f"{len(distinct)} keys could not be opened at once, for others were opened or written "
            f"meanwhile: raise chain.objects_max, now {directory.objects_max}"
        )

    @asynccontextmanager
    async def change(self, keys: Sequence[bytes]) -> AsyncIterator[None]:
        """Write or delete keys alone; all are claimed at once, so that nobody waits in a circle."""
        await self._settled(keys)
        done = asyncio.get_running_loop().create_future()
        self._changing.update(dict.fromkeys(keys, done))
        try:
            yield
        finally:
            for key in set(keys):
                del self._changing[key]
            done.set_result(None)

    async def put(self, batch: ObjectBatch) -> PutResult:
        """Publish objects at the origin; inside :meth:`change`."""
        assert self._origin is not None
        try:
            result = await self._origin.put(batch)
            _check_answer("put", len(batch), result.status, result.versions)
        except BaseException:
            # It may have happened or not: the origin is asked anew at the next opening.
            self.remove(batch.keys)
            raise
        return result

    async def delete(self, keys: Sequence[bytes]) -> U8:
        """Forget keys here, then remove their objects from the origin; inside :meth:`change`."""
        assert self._origin is not None
        self.remove(keys)
        status = await self._origin.delete(keys)
        _check_answer("delete", len(keys), status)
        return status

    def publish(self, entries: Iterable[ObjectEntry]) -> None:
        """Let reserved entries be found, in the place of what had their keys."""
        for entry in entries:
            self._retire(self.directory.publish(entry))

    def remove(self, keys: Sequence[bytes]) -> None:
        """Forget keys here."""
        self._retire(self.directory.remove(keys))

    def forget(self, entries: Iterable[ObjectEntry]) -> None:
        """Let go of versions that the origin no longer has; the next opening asks it anew."""
        for entry in entries:
            if self.directory.by_id(entry.object_id) is entry:
                self.remove([entry.key])

    def _publish_found(self, keys: Sequence[bytes], stats: ObjectStats) -> None:
        for key, pages, version in zip(
            keys, stats.pages.tolist(), stats.versions.tolist(), strict=True
        ):
            if pages > 0 and not self.directory.knows(key):
                entry = self.directory.revive(key, pages, version)
                if entry is None:
                    entry = self.directory.reserve(key, pages, version, at_origin=True)
                self.publish([entry])

    async def _settled(self, keys: Sequence[bytes]) -> None:
        """Wait while any of the keys is being written or deleted."""
        while busy := {self._changing[key] for key in keys if key in self._changing}:
            await asyncio.wait(busy)

    def _retire(self, entries: Iterable[ObjectEntry]) -> None:
        for entry in entries:
            self._invalidate(entry.page_ids())


def _unknown(keys: Sequence[bytes], directory: ObjectDirectory) -> list[bytes]:
    """Keys that the directory does not know; the others count as opened, so they stay longest."""
    entries = directory.find(keys)
    return [key for key, entry in zip(keys, entries, strict=True) if entry is None]


def _check_answer(call: str, expected: int, *columns: NDArray[Any]) -> None:
    """Believe no plugin: an answer of another length says nothing of any key."""
    for column in columns:
        if column.shape != (expected,):
            raise BackendError(
                f"the origin's {call} answered an array of shape {list(column.shape)} for "
                f"{expected} keys"
            )
