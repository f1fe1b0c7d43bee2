"""One object of the store: how it is found, read, published and removed.

An S3 object holds the pages of its object and nothing else. Its version lies in its metadata
(``x-amz-meta-kvtier-version``): a random u64 that its writer drew. It comes with every answer to a
GET or HEAD, and such an answer is about one S3 object as a whole, so a read knows whose bytes it
got without another request; the ETag would not do, for two objects of the same bytes have the
same. An object that something else put there has a version made of its ETag, size and time.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import obstore

from kvtier.errors import BackendError
from kvtier.pages import OBJECT_PAGES_MAX, U8, PageStatus
from kvtier_s3.faults import StoreError, is_absent, reason, status_of
from kvtier_s3.names import name_of

if TYPE_CHECKING:
    from obstore import Bytes, GetResult
    from obstore.store import S3Store

OBJECT_BYTES_MAX: Final = 5 << 40
"""Largest object that every S3 store takes."""

PART_BYTES: Final = 8 << 20
"""Objects beyond it go as multipart uploads, in parts of this size, or larger ones."""

_PARTS_MAX: Final = 10_000
_PARTS_IN_FLIGHT: Final = 4
_RANGE_NOT_SATISFIABLE: Final = 416

_VERSION_ATTRIBUTE: Final = "kvtier-version"
_VERSION: Final = re.compile(r"[0-9a-f]{16}")


class Found(NamedTuple):
    """What is known of an object."""

    pages: int
    version: int


class S3Objects:
    """The objects below one folder of a bucket.

    Args:
        store: the client.
        folder: what their names begin with.
        place: the store, as messages name it.
        page_bytes: bytes of a page.
    """

    def __init__(self, store: S3Store, folder: str, place: str, page_bytes: int) -> None:
        self.folder = folder
        self._store = store
        self._place = place
        self._page_bytes = page_bytes

    async def find(self, key: bytes) -> Found | None:
        """Pages and version of an object, None where there is none. Raises BackendError."""
        try:
            return await self._head(self._name_of(key))
        except StoreError as error:
            raise BackendError(
                f"origin {self._place}: {reason(error, 'read objects (s3:GetObject)')}"
            ) from error

    async def read(
        self, key: bytes, version: int, first: int, stop: int
    ) -> tuple[PageStatus, Bytes | None]:
        """Pages ``first`` to ``stop`` of an object, or as many as there are.

        Returns:
            OK and their bytes, or ABSENT where the object is not there in that version or ends
            before ``first``, or FAILED.
        """
        name = self._name_of(key)
        wanted = (first * self._page_bytes, stop * self._page_bytes)
        try:
            result = await obstore.get_async(self._store, name, options={"range": wanted})
            found = self._found(result)
            if found is None or found.version != version:
                return PageStatus.ABSENT, None
            data = await result.bytes_async()
        except StoreError as error:
            # Whichever version the store has now, that one or a shorter one, it has no such pages.
            is_beyond = status_of(error) == _RANGE_NOT_SATISFIABLE
            is_gone = is_beyond or is_absent(error)
            return PageStatus.ABSENT if is_gone else PageStatus.FAILED, None
        if len(data) < (min(stop, found.pages) - first) * self._page_bytes:
            return PageStatus.FAILED, None
        return PageStatus.OK, data

    async def publish(self, key: bytes, pages: U8) -> int | None:
        """Put an object whole; returns its version, None where it failed."""
        version = secrets.randbits(64) or 1  # 0 stands for no object
        part_bytes = max(PART_BYTES, -(-pages.nbytes // _PARTS_MAX))
        is_large = pages.nbytes > part_bytes
        try:
            await obstore.put_async(
                self._store,
                self._name_of(key),
                # Copies: the client may hold on to them after a cancelled caller reuses the pages.
                _parts(pages, part_bytes) if is_large else pages.tobytes(),
                attributes={_VERSION_ATTRIBUTE: f"{version:016x}"},
                use_multipart=is_large,
                chunk_size=part_bytes,
                max_concurrency=_PARTS_IN_FLIGHT,
            )
        except StoreError:
            return None
        return version

    async def remove(self, key: bytes) -> PageStatus:
        """Remove an object: OK, ABSENT or FAILED."""
        name = self._name_of(key)
        try:
            # S3 answers a DELETE alike whether there was an object or not.
            if await self._head(name) is None:
                return PageStatus.ABSENT
            await obstore.delete_async(self._store, name)
        except StoreError as error:
            return PageStatus.ABSENT if is_absent(error) else PageStatus.FAILED
        return PageStatus.OK

    def _name_of(self, key: bytes) -> str:
        return self.folder + name_of(key)

    async def _head(self, name: str) -> Found | None:
        with contextlib.suppress(FileNotFoundError):
            return self._found(await obstore.get_async(self._store, name, options={"head": True}))
        return None

    def _found(self, result: GetResult) -> Found | None:
        """What an answer says of its object; one without a whole page is none."""
        meta = result.meta
        pages = min(meta["size"] // self._page_bytes, OBJECT_PAGES_MAX)
        if pages == 0:
            return None
        text = result.attributes.get(_VERSION_ATTRIBUTE, "")
        if _VERSION.fullmatch(text):
            return Found(pages, int(text, 16) or 1)
        identity = f"{meta['e_tag']} {meta['size']} {meta['last_modified'].timestamp()}"
        digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
        return Found(pages, int.from_bytes(digest, "little") or 1)


def _parts(pages: U8, part_bytes: int) -> Iterator[bytes]:
    payload = pages.reshape(-1)
    for start in range(0, len(payload), part_bytes):
        yield payload[start : start + part_bytes].tobytes()
