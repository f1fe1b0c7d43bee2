"""What every part of the contract stands on: the backend, and hooks to look behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from kvtier.backend import Backend
from kvtier.pages import U8
from kvtier.testing.batches import put_objects
from kvtier.testing.pages import make_pages


class ContractBase:
    """Subclasses give the fixture ``backend``, and the hooks that their store allows.

    Attributes:
        page_bytes: the page size that the fixture opens the backend with.
    """

    pytestmark: ClassVar = [pytest.mark.asyncio]
    page_bytes: ClassVar[int] = 512

    @pytest.fixture
    def backend(self) -> Any:
        """An open, empty backend, closed afterwards; an asynchronous fixture in a subclass."""
        pytest.fail("give a fixture 'backend' that yields an open, empty backend")

    async def raw_get(self, backend: Backend, key: bytes) -> U8 | None:
        """What the store holds for ``key``, got without the backend. A hook."""
        pytest.skip(f"no hook 'raw_get' can look for {key!r} behind {_name(backend)}")

    async def raw_set(self, backend: Backend, key: bytes, pages: U8) -> None:
        """Put an object into the store without the backend. A hook."""
        pytest.skip(
            f"no hook 'raw_set' can put {len(pages)} pages of {key!r} behind {_name(backend)}"
        )

    async def reopen(self, backend: Backend) -> Backend:
        """Another backend on the store of a closed one. Needed where it is ``persistent``."""
        pytest.fail(f"give a hook 'reopen': {_name(backend)} says that it is persistent")

    async def publish(self, backend: Backend, objects: Mapping[bytes, U8]) -> dict[bytes, int]:
        """Bring objects into the store, through the backend where it can write."""
        if backend.capability.writable:
            return await put_objects(backend, objects, self.page_bytes)
        for key, pages in objects.items():
            await self.raw_set(backend, key, pages)
        stats = await backend.stat(list(objects))
        return dict(zip(objects, stats.versions.tolist(), strict=True))

    def make(self, key: bytes, count: int, generation: int = 0) -> U8:
        """Pages of ``key``: u8[count, page_bytes], others in each generation."""
        return make_pages(key, generation, count, self.page_bytes)


def _name(backend: Backend) -> str:
    return type(backend).__name__


def needs_writable(backend: Backend) -> None:
    """Skip the test where the backend cannot write."""
    if not backend.capability.writable:
        pytest.skip("the backend is not writable")


def needs_listable(backend: Backend) -> None:
    """Skip the test where the backend cannot list."""
    if not backend.capability.listable:
        pytest.skip("the backend is not listable")
