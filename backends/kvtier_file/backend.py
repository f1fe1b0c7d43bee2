"""The file backend: batches spread over a few threads."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

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
    empty_status,
)
from kvtier.errors import BackendError, ClosedError, SettingsError
from kvtier.pages import U8, PageStatus, check_page_bytes
from kvtier_file.layout import open_layout
from kvtier_file.names import KEY_BYTES_MAX, is_folder, key_of
from kvtier_file.objects import ObjectFiles
from kvtier_file.reading import ExtentReader
from kvtier_file.workers import Workers, to_the_end

_THREADS_MAX: Final = 256
_OPTIONS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "root": (str, os.PathLike),
    "threads": int,
    "sync": bool,
}


class FileBackend(Backend):
    """Objects as files below a directory.

    Options:
        root: the directory; made if it is not there.
        threads: operations at once; 8 by default.
        sync: put and delete return once what they did outlives a crash of the machine; true by
            default. Without it a crash may lose or damage the newest objects.

    A cancelled call waits for the operation that each of its threads has begun, because that
    still writes into the caller's memory, and starts no further one.
    """

    capability = Capability(persistent=True, shared=True, key_bytes_max=KEY_BYTES_MAX)

    def __init__(self, files: ObjectFiles, page_bytes: int, threads: int) -> None:
        self._files = files
        self._page_bytes = page_bytes
        self._workers = Workers(threads)
        self._closed = False

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> FileBackend:
        check_options(options, _OPTIONS, "file", required=("root",))
        check_page_bytes(page_bytes)
        threads = options.get("threads", 8)
        if not 1 <= threads <= _THREADS_MAX:
            raise SettingsError(
                f"option 'threads' of backend 'file' is {threads}: 1 to {_THREADS_MAX} are possible"
            )
        # To the end: whoever gives up may remove the directory, and that must not be filled then.
        layout = await to_the_end(open_layout, Path(options["root"]), page_bytes)
        files = ObjectFiles(layout, page_bytes, sync=options.get("sync", True))
        return cls(files, page_bytes, threads)

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        self._check_open()
        check_keys(keys, self.capability)
        stats = ObjectStats(np.full(len(keys), -1, np.int64), np.zeros(len(keys), np.uint64))

        def find(items: Iterator[int]) -> None:
            for item in items:
                found = self._files.find(keys[item])
                if found is not None:
                    stats.pages[item], stats.versions[item] = found

        await self._workers.for_each(np.arange(len(keys)), find)
        return stats

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        self._check_open()
        check_extents(batch, out, self._page_bytes, self.capability)
        status = empty_status(len(batch))
        # Extents of one object lie together in a share, so that few files are opened.
        order = np.argsort(batch.key_index, kind="stable")
        await self._workers.for_each(order, ExtentReader(self._files, batch, out, status).read)
        return status

    async def put(self, batch: ObjectBatch) -> PutResult:
        self._check_open()
        check_objects(batch, self._page_bytes, self.capability)
        result = PutResult(empty_status(len(batch)), np.zeros(len(batch), np.uint64))
        rows = [0, *np.cumsum(batch.page_counts, dtype=np.int64).tolist()]

        def publish(items: Iterator[int]) -> None:
            for item in items:
                pages = batch.payload[rows[item] : rows[item + 1]]
                try:
                    result.versions[item] = self._files.publish(batch.keys[item], pages)
                except OSError as error:
                    self._files.failures.note("written", error)
                    result.status[item] = PageStatus.FAILED

        await self._workers.for_each(np.arange(len(batch)), publish)
        return result

    async def delete(self, keys: Sequence[bytes]) -> U8:
        self._check_open()
        check_keys(keys, self.capability)
        status = empty_status(len(keys))

        def remove(items: Iterator[int]) -> None:
            for item in items:
                status[item] = self._files.remove(keys[item])

        await self._workers.for_each(np.arange(len(keys)), remove)
        return status

    async def keys(self) -> AsyncIterator[bytes]:
        for folder in await self._names_in(self._files.folder):
            if not is_folder(folder):
                continue
            for name in await self._names_in(self._files.folder / folder):
                key = key_of(folder, name)
                if key is not None:
                    self._check_open()
                    yield key

    async def close(self) -> None:
        self._closed = True
        await self._workers.close()

    async def _names_in(self, folder: Path) -> list[str]:
        self._check_open()
        try:
            return await self._workers.call(os.listdir, folder)
        except OSError as error:
            raise BackendError(f"{folder} cannot be listed: {error.strerror}") from error

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this file backend is closed: open another")
