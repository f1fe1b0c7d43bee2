"""Objects in an SQLite database."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from kvtier import backend as kv
from kvtier.errors import BackendError, ClosedError
from kvtier.pages import U8, PageStatus

# AUTOINCREMENT: a version that was given is never given again, after a delete or a restart either.
SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA recursive_triggers = ON;
CREATE TABLE IF NOT EXISTS objects (
    version INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL UNIQUE, pages INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS pages (
    version INTEGER, page INTEGER, bytes BLOB, PRIMARY KEY (version, page)) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS gone AFTER DELETE ON objects
    BEGIN DELETE FROM pages WHERE version = old.version; END;
"""
READ = """SELECT bytes FROM objects JOIN pages USING (version)
    WHERE key = ? AND version = ? AND page >= ? AND page < ? ORDER BY page"""


T = TypeVar("T")


class SqliteBackend(kv.Backend):
    """Option ``path``: the database, made if it is not there."""

    capability = kv.Capability(persistent=True)

    def __init__(self, path: str, page_bytes: int) -> None:
        self._page_bytes = page_bytes
        self._is_closed = False
        self._thread = ThreadPoolExecutor(1)  # so that one query follows the other
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.executescript(SCHEMA)

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> SqliteBackend:
        kv.check_options(options, {"path": str}, "sqlite", required=("path",))
        try:
            return await asyncio.to_thread(cls, options["path"], page_bytes)
        except sqlite3.Error as error:
            raise BackendError(f"origin {options['path']}: {error}") from error

    async def stat(self, keys: Sequence[bytes]) -> kv.ObjectStats:
        kv.check_keys(keys, self.capability)
        query = "SELECT pages, version FROM objects WHERE key = ?"
        found = await self._ask(query, [(key,) for key in keys])
        pages = np.array([rows[0][0] if rows else -1 for rows in found], np.int64)
        versions = np.array([rows[0][1] if rows else 0 for rows in found], np.uint64)
        return kv.ObjectStats(pages, versions)

    async def read(self, batch: kv.ExtentBatch, out: U8) -> U8:
        kv.check_extents(batch, out, self._page_bytes, self.capability)
        keys = [batch.keys[index] for index in batch.key_index]
        versions = batch.versions.astype(np.int64)[batch.key_index].tolist()
        starts, counts = batch.first_page.tolist(), batch.page_count.tolist()
        stops = [start + count for start, count in zip(starts, counts, strict=True)]
        found = await self._ask(READ, list(zip(keys, versions, starts, stops, strict=True)))
        status = kv.empty_status(len(batch))
        # Here, not in the thread: a caller that was cancelled has its memory back.
        for index, (rows, first, count) in enumerate(zip(found, batch.row, counts, strict=True)):
            if len(rows) == count:
                pages = np.frombuffer(b"".join(page for (page,) in rows), np.uint8)
                out[first : first + count] = pages.reshape(count, self._page_bytes)
            else:
                status[index] = PageStatus.ABSENT
        return status

    async def put(self, batch: kv.ObjectBatch) -> kv.PutResult:
        kv.check_objects(batch, self._page_bytes, self.capability)
        # A copy: a caller that was cancelled has its memory back.
        pages = iter([page.tobytes() for page in batch.payload])
        objects = [
            (key, list(islice(pages, count)))
            for key, count in zip(batch.keys, batch.page_counts.tolist(), strict=True)
        ]
        versions = await self._run(lambda: [self._put(key, some) for key, some in objects])
        return kv.PutResult(kv.empty_status(len(batch)), np.array(versions, np.uint64))

    async def delete(self, keys: Sequence[bytes]) -> U8:
        kv.check_keys(keys, self.capability)
        query = "DELETE FROM objects WHERE key = ? RETURNING key"
        found = await self._ask(query, [(key,) for key in keys])
        return np.array([PageStatus.OK if rows else PageStatus.ABSENT for rows in found], np.uint8)

    async def keys(self) -> AsyncIterator[bytes]:
        for (key,) in (await self._ask("SELECT key FROM objects", [()]))[0]:
            self._check_open()
            yield key

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._db.close)
            self._thread.shutdown(wait=False)

    def _put(self, key: bytes, pages: list[bytes]) -> int:
        with self._db:  # whole or not at all
            self._db.execute("BEGIN")
            query = "INSERT OR REPLACE INTO objects (key, pages) VALUES (?, ?) RETURNING version"
            ((version,),) = self._db.execute(query, (key, len(pages))).fetchall()
            rows = [(version, number, page) for number, page in enumerate(pages)]
            self._db.executemany("INSERT INTO pages VALUES (?, ?, ?)", rows)
        return int(version)

    async def _ask(self, query: str, items: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
        """The rows that the query finds for each item."""
        return await self._run(lambda: [self._db.execute(query, one).fetchall() for one in items])

    async def _run(self, work: Callable[[], T]) -> T:
        """Do ``work`` in the thread; the loop goes on meanwhile."""
        self._check_open()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise BackendError(f"sqlite: {error}") from error

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError("this sqlite backend is closed: open another")
