"""The interface of a storage backend: one small set of batched, asynchronous calls.

A backend holds *objects*: immutable, named runs of pages. Every call takes a batch, answers per
item, and may succeed in part. A backend is found by its entry point in ``kvtier.backends``
(:mod:`kvtier.registry`), and proves itself with the contract suite in :mod:`kvtier.testing`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import numpy as np

from kvtier import extents
from kvtier.errors import LimitError, SettingsError
from kvtier.pages import I64, U8, U32, U64

API_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Capability:
    """What a backend can do: drives both the callers and the contract suite.

    Attributes:
        api_version: the version of this interface it was written for.
        writable: ``put`` and ``delete`` work.
        listable: ``keys`` works.
        persistent: objects outlive ``close``.
        shared: other processes see the same objects.
        remote: calls go over a network, so they may fail or take long by no fault of the store.
        key_bytes_max: longest key; the shortest is one byte.
        object_pages_max: most pages of one object.
        extent_pages_max: most pages of one extent.
        batch_extents_max: most extents of one ``read``.
    """

    api_version: int = API_VERSION
    writable: bool = True
    listable: bool = True
    persistent: bool = False
    shared: bool = False
    key_bytes_max: int = 1024
    object_pages_max: int = (1 << 32) - 1
    extent_pages_max: int = 1 << 20
    batch_extents_max: int = 1 << 16
    remote: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class ExtentBatch:
    """A batch of ``n`` extents to read, as a struct of arrays.

    Attributes:
        keys: the distinct object keys of the batch.
        versions: u64[len(keys)], the version wanted of each; an object that has another version
            by now is answered ABSENT, so pages of two versions never mix.
        key_index: u32[n], the extent's key as an index into ``keys``.
        first_page: u32[n], its first page inside the object.
        page_count: u32[n], its pages, at least 1. An extent that ends past the end of its object is
            ABSENT as a whole: it is a question about pages that there are not, no failure.
        row: u32[n], the row of ``out`` that takes its first page; the others follow.
    """

    keys: tuple[bytes, ...]
    versions: U64
    key_index: U32
    first_page: U32
    page_count: U32
    row: U32

    def __len__(self) -> int:
        return len(self.first_page)

    @property
    def pages(self) -> int:
        """Pages of all extents."""
        return int(extents.run(self.page_count, self.row)[0])

    def rows(self) -> range | None:
        """The rows, if there are any and the extents fill them one after the other; else None."""
        if len(self) == 0:
            return None
        first = int(self.row[0])
        pages, is_run = extents.run(self.page_count, self.row)
        return range(first, first + int(pages)) if is_run else None


@dataclass(frozen=True, slots=True, eq=False)
class ObjectBatch:
    """Whole objects to publish.

    Attributes:
        keys: k distinct keys.
        page_counts: u32[k], pages of each, at least 1.
        payload: u8[sum(page_counts), page_bytes], their pages, object after object.
    """

    keys: tuple[bytes, ...]
    page_counts: U32
    payload: U8

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True, eq=False)
class ObjectStats:
    """What ``stat`` knows of k keys.

    Attributes:
        pages: i64[k], pages of the object, -1 where there is none.
        versions: u64[k], changes whenever the key is rewritten; 0 where there is none.
    """

    pages: I64
    versions: U64


@dataclass(frozen=True, slots=True, eq=False)
class PutResult:
    """What became of k published objects.

    Attributes:
        status: u8[k], ``PageStatus.OK`` or ``PageStatus.FAILED``.
        versions: u64[k], the version each key has now; 0 where it failed.
    """

    status: U8
    versions: U64


class Backend(ABC):
    """One store of objects. All methods but ``open`` may be called concurrently.

    A failure of the store shows as a status per item; an exception
    (:class:`kvtier.errors.BackendError`) means that nothing can be said of any item. After
    ``close`` every call raises :class:`kvtier.errors.ClosedError`.
    """

    capability: Capability
    """What this store can do; of the class where every instance can do the same."""

    @property
    def available(self) -> bool:
        """Whether it makes sense to ask now; False where a call would be refused at once.

        A cache asks before it makes room for what it would read. Most stores cannot know.
        """
        return True

    @classmethod
    @abstractmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> Backend:
        """Validate ``options`` and connect.

        Raises:
            SettingsError: an option is unknown, missing or of a wrong type.
            BackendError: the store cannot be reached, or refuses.
        """

    @abstractmethod
    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        """Pages and version of each key. Raises BackendError when the store cannot say."""

    @abstractmethod
    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        """Read extents into rows of ``out``.

        Args:
            batch: at most ``batch_extents_max`` extents of at most ``extent_pages_max`` pages.
            out: u8[rows, page_bytes], C-contiguous. Rows of an extent that is not OK hold
                nothing of use. Once the call returned, raised or was cancelled, ``out`` is not
                touched any more.

        Returns:
            u8[len(batch)], a :class:`kvtier.pages.PageStatus` (OK, ABSENT or FAILED) per extent.
        """

    @abstractmethod
    async def put(self, batch: ObjectBatch) -> PutResult:
        """Publish whole objects; each appears at once and whole, or not at all."""

    @abstractmethod
    async def delete(self, keys: Sequence[bytes]) -> U8:
        """Remove objects. u8[k]: OK, ABSENT (there was none) or FAILED per key."""

    @abstractmethod
    def keys(self) -> AsyncIterator[bytes]:
        """Every key, in no order; objects put or deleted meanwhile may be missed or seen.

        Where objects are deleted or moved meanwhile, other keys may come twice: no backend has to
        hold all of them in memory to tell.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything; a second call does nothing."""


class ResidentBackend(Backend):
    """A store whose objects lie in this process's memory.

    A server sends pages from there, where its connection is not secret, without a copy in between.

    Attributes:
        page_bytes: the page size that it was opened with.
    """

    page_bytes: int

    @abstractmethod
    def locate(self, keys: Sequence[bytes]) -> U64:
        """Where objects lie, until the event loop goes on.

        Args:
            keys: k names, of any length.

        Returns:
            u64[k, 3]: of each its version, its pages, and the address of the first; the others
            follow. Where there is no such object, it has no page.
        """

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        check_extents(batch, out, self.page_bytes, self.capability)
        return copy_extents(batch, self.locate(batch.keys), out)


def copy_extents(batch: ExtentBatch, places: U64, out: U8) -> U8:
    """Answer a read, checked by :func:`check_extents`, out of objects in memory.

    Args:
        batch: the read.
        places: u64[k, 3], of its keys, as :meth:`ResidentBackend.locate` tells them.
        out: u8[rows, page_bytes].

    Returns:
        u8[n], a ``PageStatus``: ABSENT where there is no such object, or it ends before the extent.
    """
    status = empty_status(len(batch))
    extents.copy(
        places,
        batch.versions,
        batch.key_index,
        batch.first_page,
        batch.page_count,
        batch.row,
        out.ctypes.data,
        out.shape[1],
        status,
    )
    return status


def empty_status(count: int) -> U8:
    """u8[count] of ``PageStatus.OK``, to be filled in where something went wrong."""
    return np.zeros(count, np.uint8)


def check_options(
    options: Mapping[str, Any],
    allowed: Mapping[str, type | tuple[type, ...]],
    backend: str,
    required: Collection[str] = (),
) -> None:
    """Raise :class:`SettingsError` unless ``options`` are what ``backend`` takes.

    Args:
        options: what ``Backend.open`` got.
        allowed: the type, or types, of each option there is. A ``float`` may be written as an
            integer; a ``bool`` is no integer.
        backend: its name, for the message.
        required: the options that must be there.
    """
    for name, value in options.items():
        if name not in allowed:
            near = get_close_matches(name, allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {_listed(allowed)}"
            raise SettingsError(f"backend {backend!r} has no option {name!r}: {hint}")
        if not _is_of_type(value, allowed[name]):
            raise SettingsError(
                f"option {name!r} of backend {backend!r} is {value!r}: "
                f"it must be of type {_type_name(allowed[name])}"
            )
    for name in required:
        if name not in options:
            raise SettingsError(
                f"backend {backend!r} needs the option {name!r}: in settings origin.options.{name}"
            )


def check_keys(keys: Collection[bytes], capability: Capability) -> None:
    """Raise :class:`LimitError` where a key is empty or longer than ``key_bytes_max``."""
    longest = capability.key_bytes_max
    for key in keys:
        if not 0 < len(key) <= longest:
            raise LimitError(
                f"a key has {len(key)} bytes: 1 to {capability.key_bytes_max} are possible"
            )


def check_extents(batch: ExtentBatch, out: U8, page_bytes: int, capability: Capability) -> None:
    """Raise :class:`LimitError` unless ``batch`` keeps to ``capability`` and fits into ``out``."""
    check_keys(batch.keys, capability)
    count = len(batch)
    if count > capability.batch_extents_max:
        raise LimitError(
            f"a batch of {count} extents: {capability.batch_extents_max} are possible at once"
        )
    if out.dtype != np.uint8 or out.shape[1:] != (page_bytes,) or not out.flags.c_contiguous:
        raise LimitError(
            f"out is {out.dtype}{list(out.shape)}: a C-contiguous u8[rows, {page_bytes}] is needed"
        )
    if count == 0:
        return
    key_last, pages_min, pages_max, rows = extents.bounds(
        batch.key_index, batch.page_count, batch.row
    )
    if key_last >= len(batch.keys):
        raise LimitError(f"an extent names key {key_last} of {len(batch.keys)}")
    if pages_min < 1 or pages_max > capability.extent_pages_max:
        raise LimitError(
            f"extents of {pages_min} to {pages_max} pages: "
            f"1 to {capability.extent_pages_max} are possible"
        )
    if rows > len(out):
        raise LimitError(f"an extent ends at row {rows} of an out of {len(out)} rows")


def check_objects(batch: ObjectBatch, page_bytes: int, capability: Capability) -> None:
    """Raise :class:`LimitError` unless ``batch`` keeps to ``capability`` and adds up."""
    check_keys(batch.keys, capability)
    if len(set(batch.keys)) != len(batch.keys):
        raise LimitError("a batch of objects names one key twice: its keys must be distinct")
    if len(batch.page_counts) != len(batch.keys):
        raise LimitError(f"{len(batch.page_counts)} page counts for {len(batch.keys)} keys")
    pages = batch.page_counts.astype(np.int64)
    if len(pages) and not 1 <= int(pages.min()) <= int(pages.max()) <= capability.object_pages_max:
        raise LimitError(
            f"objects of {int(pages.min())} to {int(pages.max())} pages: "
            f"1 to {capability.object_pages_max} are possible"
        )
    payload = batch.payload
    if payload.dtype != np.uint8 or payload.shape != (int(pages.sum()), page_bytes):
        raise LimitError(
            f"the payload is {payload.dtype}{list(payload.shape)}: "
            f"a u8[{int(pages.sum())}, {page_bytes}] is needed"
        )


def _is_of_type(value: object, wanted: type | tuple[type, ...]) -> bool:
    types = wanted if isinstance(wanted, tuple) else (wanted,)
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types) or (float in types and isinstance(value, int))


def _type_name(wanted: type | tuple[type, ...]) -> str:
    types = wanted if isinstance(wanted, tuple) else (wanted,)
    return " or ".join(one.__name__ for one in types)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) if names else "none"
