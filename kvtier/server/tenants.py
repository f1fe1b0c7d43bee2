"""A store that several tenants share and in which each sees its own objects only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from kvtier.backend import (
    Backend,
    ExtentBatch,
    ObjectBatch,
    ObjectStats,
    PutResult,
    check_keys,
    check_options,
)
from kvtier.errors import SettingsError
from kvtier.pages import U8
from kvtier.wrappers.wrapper import Wrapper

_OPTIONS: Final = {"inner": Backend, "tenant": str}
_FOREIGN_KEYS: Final = 1024
"""Keys of others that a listing passes before it lets other requests have their turn."""


def namespace_of(tenant: str) -> bytes:
    """What every key of ``tenant`` begins with.

    The length in front keeps namespaces apart: none is the beginning of another, so no key of one
    tenant can be made to look like a key of another.
    """
    name = tenant.encode()
    return bytes((len(name),)) + name


def tenant_view(backend: Backend, tenant: str) -> Backend:
    """``backend`` as ``tenant`` sees it; as it is for a tenant without a name.

    Raises:
        SettingsError: its keys are too short for a namespace.
    """
    return TenantView(backend, tenant) if tenant else backend


class TenantView(Wrapper):
    """The objects of one tenant. Keys are put into its namespace on the way in.

    Args:
        inner: an open backend.
        tenant: the name.
    """

    def __init__(self, inner: Backend, tenant: str) -> None:
        super().__init__(inner)
        self._namespace = namespace_of(tenant)
        key_bytes_max = inner.capability.key_bytes_max - len(self._namespace)
        if key_bytes_max < 1:
            raise SettingsError(
                f"the store behind the server has keys of {inner.capability.key_bytes_max} bytes: "
                f"too short for the namespace of tenant {tenant}; shorten its name"
            )
        self.capability = replace(inner.capability, key_bytes_max=key_bytes_max)

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> TenantView:  # noqa: ARG003
        check_options(options, _OPTIONS, "tenant", required=("inner", "tenant"))
        return cls(options["inner"], options["tenant"])

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        return await self.inner.stat(self.own(keys))

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        return await self.inner.read(replace(batch, keys=self.own(batch.keys)), out)

    async def put(self, batch: ObjectBatch) -> PutResult:
        return await self.inner.put(replace(batch, keys=self.own(batch.keys)))

    async def delete(self, keys: Sequence[bytes]) -> U8:
        return await self.inner.delete(self.own(keys))

    async def keys(self) -> AsyncIterator[bytes]:
        passed = 0
        async for key in self.inner.keys():
            if key.startswith(self._namespace):
                yield key[len(self._namespace) :]
                continue
            passed += 1
            if passed % _FOREIGN_KEYS == 0:
                await asyncio.sleep(0)

    def own(self, keys: Sequence[bytes]) -> tuple[bytes, ...]:
        """What the store calls ``keys`` of the tenant; LimitError where one is too long."""
        # Checked here: the store's own bounds are larger, and of keys that nobody sent.
        check_keys(keys, self.capability)
        return tuple(self._namespace + key for key in keys)
