"""Batches written the short way, and whole objects read in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from kvtier.backend import Backend, ExtentBatch, ObjectBatch
from kvtier.pages import U8, U32, PageStatus


def make_objects(objects: Mapping[bytes, U8], page_bytes: int) -> ObjectBatch:
    """A batch to put, of each key's pages: u8[pages, page_bytes]."""
    counts = np.array([len(pages) for pages in objects.values()], np.uint32)
    payload = np.concatenate([np.empty((0, page_bytes), np.uint8), *objects.values()])
    return ObjectBatch(tuple(objects), counts, payload)


def make_extents(
    versions: Mapping[bytes, int], extents: Iterable[tuple[bytes, int, int, int]]
) -> ExtentBatch:
    """A batch to read.

    Args:
        versions: the version wanted of each key.
        extents: key, first page, page count and row of each.
    """
    keys = {key: index for index, key in enumerate(versions)}
    columns = np.array(
        [(keys[key], first, count, row) for key, first, count, row in extents], np.uint32
    ).reshape(-1, 4)
    key_index, first_page, page_count, row = (_column(columns, index) for index in range(4))
    wanted = np.array(list(versions.values()), np.uint64)
    return ExtentBatch(tuple(keys), wanted, key_index, first_page, page_count, row)


def check_status(status: object, extents: int) -> None:
    """Whether ``read`` answered as it should: u8[n], a status for each extent."""
    assert isinstance(status, np.ndarray), f"read answered a {type(status).__name__}, no array"
    assert (status.dtype, status.shape) == (np.uint8, (extents,))


async def put_objects(
    backend: Backend, objects: Mapping[bytes, U8], page_bytes: int
) -> dict[bytes, int]:
    """Put objects, all of which must succeed; returns the version of each."""
    result = await backend.put(make_objects(objects, page_bytes))
    assert result.status.tolist() == [PageStatus.OK] * len(objects)
    assert 0 not in result.versions.tolist(), "0 is no version"
    return dict(zip(objects, result.versions.tolist(), strict=True))


async def list_keys(backend: Backend) -> list[bytes]:
    """Every key that the backend lists."""
    listing = backend.keys()
    return [key async for key in listing]


async def read_objects(
    backend: Backend, keys: Sequence[bytes], page_bytes: int
) -> dict[bytes, U8 | None]:
    """The pages of each key by one ``stat`` and one ``read``; None where it is not there.

    An object that is rewritten between the two calls counts as not there.
    """
    stats = await backend.stat(keys)
    assert len(stats.pages) == len(stats.versions) == len(keys), "stat answers every key"
    length = backend.capability.extent_pages_max
    versions: dict[bytes, int] = {}
    rows: dict[bytes, slice] = {}
    extents: list[tuple[bytes, int, int, int]] = []
    end = 0
    for key, pages, version in zip(
        keys, stats.pages.tolist(), stats.versions.tolist(), strict=True
    ):
        if pages < 0:
            continue
        versions[key], rows[key] = version, slice(end, end + pages)
        extents.extend(
            (key, first, min(length, pages - first), end + first)
            for first in range(0, pages, length)
        )
        end += pages
    out = np.empty((end, page_bytes), np.uint8)
    status = await backend.read(make_extents(versions, extents), out)
    check_status(status, len(extents))
    assert set(status.tolist()) <= {PageStatus.OK, PageStatus.ABSENT}
    lost = {key for (key, *_), one in zip(extents, status.tolist(), strict=True) if one}
    return {key: out[rows[key]] if key in rows and key not in lost else None for key in keys}


def _column(columns: U32, index: int) -> U32:
    return np.ascontiguousarray(columns[:, index])
