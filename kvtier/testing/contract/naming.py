"""Keys are bytes, any bytes; none is a path, and no two are the same."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest

from kvtier.backend import Backend
from kvtier.errors import LimitError
from kvtier.pages import PageStatus
from kvtier.testing.batches import list_keys, make_extents, make_objects, read_objects
from kvtier.testing.contract.base import ContractBase, needs_listable, needs_writable

AWKWARD_KEYS: Final = (
    b"\x00",
    b"a\x00b",
    b"/",
    b"/etc/passwd",
    b".",
    b"..",
    b"../../up",
    b"a/b",
    b"a//b",
    b"a",
    b"A",
    b" ",
    b"a ",
    b"\n",
    b"~",
    b"%",
    b"%61",
    b"%2E",
    b"=",
    b"=YQ==",
    b"{tag}",
    b"*?[",
    b"\xff\xfe",
    b"\xc3\x28",
    "schlüssel".encode(),
    bytes(range(1, 128)),
)


class NamingContract(ContractBase):
    async def test_keys_of_any_bytes_live_side_by_side(self, backend: Backend) -> None:
        objects = {key: self.make(key, 1) for key in AWKWARD_KEYS}
        await self.publish(backend, objects)
        found = await read_objects(backend, list(objects), self.page_bytes)
        for key, pages in objects.items():
            np.testing.assert_array_equal(found[key], pages)

    async def test_keys_of_any_bytes_are_listed_as_they_are(self, backend: Backend) -> None:
        needs_listable(backend)
        await self.publish(backend, {key: self.make(key, 1) for key in AWKWARD_KEYS})
        assert set(await list_keys(backend)) == set(AWKWARD_KEYS)

    async def test_keys_of_any_bytes_can_be_deleted_one_by_one(self, backend: Backend) -> None:
        needs_writable(backend)
        await self.publish(backend, {key: self.make(key, 1) for key in AWKWARD_KEYS})
        for index, key in enumerate(AWKWARD_KEYS):
            assert (await backend.delete([key])).tolist() == [PageStatus.OK]
            stats = await backend.stat(AWKWARD_KEYS)
            assert (stats.pages > 0).sum() == len(AWKWARD_KEYS) - index - 1

    @pytest.mark.parametrize("byte", [b"a", b"\xff", b"/"])
    async def test_the_longest_key_is_kept(self, backend: Backend, byte: bytes) -> None:
        long = byte * backend.capability.key_bytes_max
        objects = {key: self.make(key, 1) for key in (long, long[:-1])}
        await self.publish(backend, objects)
        found = await read_objects(backend, list(objects), self.page_bytes)
        for key, pages in objects.items():
            np.testing.assert_array_equal(found[key], pages)

    async def test_an_empty_key_is_refused(self, backend: Backend) -> None:
        await self._check_refused(backend, b"")

    async def test_a_key_beyond_the_limit_is_refused(self, backend: Backend) -> None:
        await self._check_refused(backend, b"a" * (backend.capability.key_bytes_max + 1))

    async def _check_refused(self, backend: Backend, key: bytes) -> None:
        out = np.empty((1, self.page_bytes), np.uint8)
        with pytest.raises(LimitError):
            await backend.stat([b"a", key])
        with pytest.raises(LimitError):
            await backend.read(make_extents({key: 1}, [(key, 0, 1, 0)]), out)
        if backend.capability.writable:
            with pytest.raises(LimitError):
                await backend.put(make_objects({key: self.make(key, 1)}, self.page_bytes))
            with pytest.raises(LimitError):
                await backend.delete([key])
