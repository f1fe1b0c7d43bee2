"""What every wrapper does alike: hand everything on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import ClassVar

from kvtier.backend import Backend, Capability, ExtentBatch, ObjectBatch, ObjectStats, PutResult
from kvtier.pages import U8


class Wrapper(Backend):
    """A backend around another one, which it closes; a subclass changes what it is about.

    Args:
        inner: an open backend.

    Attributes:
        name: what results call it.
    """

    name: ClassVar[str] = "wrapper"
    capability: Capability

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.capability = inner.capability

    @property
    def available(self) -> bool:
        return self.inner.available

    def counts(self) -> Mapping[str, int]:
        """What it did so far, by name."""
        return {}

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        return await self.inner.stat(keys)

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        return await self.inner.read(batch, out)

    async def put(self, batch: ObjectBatch) -> PutResult:
        return await self.inner.put(batch)

    async def delete(self, keys: Sequence[bytes]) -> U8:
        return await self.inner.delete(keys)

    def keys(self) -> AsyncIterator[bytes]:
        return self.inner.keys()

    async def release(self) -> None:
        """Let go of what the wrapper itself holds; the inner backend stays open."""

    async def close(self) -> None:
        await self.release()
        await self.inner.close()
