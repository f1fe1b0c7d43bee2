from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import resource
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from kvtier_file import FileBackend
from kvtier_file.layout import Layout, open_layout
from kvtier_file.names import KEY_BYTES_MAX, key_of, path_of

from kvtier.backend import Backend
from kvtier.errors import BackendError, SettingsError
from kvtier.pages import U8, PageStatus
from kvtier.testing.batches import list_keys, make_extents, make_objects, put_objects, read_objects
from kvtier.testing.contract import BackendContract
from kvtier.testing.contract.naming import AWKWARD_KEYS
from kvtier.testing.pages import make_pages

PAGE_BYTES = 512


class TestFileBackend(BackendContract):
    @pytest_asyncio.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[Backend]:
        backend = await open_store(tmp_path)
        yield backend
        await backend.close()

    @pytest.fixture(autouse=True)
    def _root(self, tmp_path: Path) -> None:
        self.root = tmp_path

    async def raw_get(self, backend: Backend, key: bytes) -> U8 | None:
        path = self.root / "objects" / path_of(key)
        return np.fromfile(path, np.uint8).reshape(-1, self.page_bytes) if path.exists() else None

    async def raw_set(self, backend: Backend, key: bytes, pages: U8) -> None:
        path = self.root / "objects" / path_of(key)
        path.parent.mkdir()
        pages.tofile(path)

    async def reopen(self, backend: Backend) -> Backend:
        return await open_store(self.root)


async def open_store(root: Path, **options: object) -> FileBackend:
    return await FileBackend.open({"root": root, "sync": False, **options}, PAGE_BYTES)


def pages_of(key: bytes, count: int = 1, generation: int = 0) -> U8:
    return make_pages(key, generation, count, PAGE_BYTES)


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileBackend]:
    backend = await open_store(tmp_path)
    yield backend
    await backend.close()


@contextlib.contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """Writes beyond it fail with EFBIG, as they fail on a full disk with ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestNames:
    @pytest.mark.parametrize("key", [*AWKWARD_KEYS, b"\xff" * KEY_BYTES_MAX, b"a" * KEY_BYTES_MAX])
    def test_a_key_comes_back_from_its_path(self, key: bytes) -> None:
        folder, name = path_of(key).split("/")
        assert key_of(folder, name) == key

    @pytest.mark.parametrize("key", [*AWKWARD_KEYS, b"\xff" * KEY_BYTES_MAX])
    def test_a_name_is_no_path_and_fits_a_directory(self, key: bytes) -> None:
        _, name = path_of(key).split("/")
        assert len(name) <= 255
        assert not set(name) & set("./~\\\x00")

    @pytest.mark.parametrize("name", ["README.md", "%2", "%zz", "=x", "=", "%61", "", "..", "a/b"])
    def test_a_foreign_name_is_no_key(self, name: str) -> None:
        assert key_of("000", name) is None


@pytest.mark.asyncio
class TestStore:
    async def test_no_folder_takes_many_objects(self, store: FileBackend, tmp_path: Path) -> None:
        objects = {b"%d" % index: pages_of(b"") for index in range(2000)}
        await put_objects(store, objects, PAGE_BYTES)
        sizes = [len(list(folder.iterdir())) for folder in (tmp_path / "objects").iterdir()]
        assert sum(sizes) == 2000
        assert max(sizes) < 10

    async def test_foreign_files_are_not_listed(self, store: FileBackend, tmp_path: Path) -> None:
        await put_objects(store, {b"a": pages_of(b"a")}, PAGE_BYTES)
        (tmp_path / "objects" / "README").write_text("hands off")
        (tmp_path / "objects" / "000").mkdir(exist_ok=True)
        (tmp_path / "objects" / "000" / "note.txt").write_text("hands off")
        assert await list_keys(store) == [b"a"]

    async def test_two_backends_share_a_store(self, store: FileBackend, tmp_path: Path) -> None:
        other = await open_store(tmp_path)
        old = await put_objects(store, {b"a": pages_of(b"a", 2, 1)}, PAGE_BYTES)
        new = await put_objects(other, {b"a": pages_of(b"a", 2, 2)}, PAGE_BYTES)
        out = np.empty((2, PAGE_BYTES), np.uint8)
        assert await store.read(make_extents(old, [(b"a", 0, 2, 0)]), out) == PageStatus.ABSENT
        assert await store.read(make_extents(new, [(b"a", 0, 2, 0)]), out) == PageStatus.OK
        np.testing.assert_array_equal(out, pages_of(b"a", 2, 2))
        await other.close()

    async def test_a_put_with_sync_reaches_the_disk(self, tmp_path: Path) -> None:
        backend = await open_store(tmp_path, sync=True)
        await put_objects(backend, {b"a": pages_of(b"a", 3)}, PAGE_BYTES)
        found = await read_objects(backend, [b"a"], PAGE_BYTES)
        np.testing.assert_array_equal(found[b"a"], pages_of(b"a", 3))
        assert (await backend.delete([b"a"])).tolist() == [PageStatus.OK]
        await backend.close()

    async def test_a_file_cut_short_is_another_object_that_ends_earlier(
        self, store: FileBackend, tmp_path: Path
    ) -> None:
        await put_objects(store, {b"a": pages_of(b"a", 4)}, PAGE_BYTES)
        os.truncate(tmp_path / "objects" / path_of(b"a"), 2 * PAGE_BYTES + 100)
        stats = await store.stat([b"a"])
        versions = {b"a": int(stats.versions[0])}
        out = np.empty((5, PAGE_BYTES), np.uint8)
        batch = make_extents(versions, [(b"a", 0, 2, 0), (b"a", 1, 2, 2), (b"a", 3, 1, 4)])
        ok, absent = PageStatus.OK, PageStatus.ABSENT
        assert (await store.read(batch, out)).tolist() == [ok, absent, absent]
        np.testing.assert_array_equal(out[:2], pages_of(b"a", 2))

    async def test_a_file_cut_short_while_it_is_read_fails_what_it_lacks(
        self, store: FileBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        versions = await put_objects(store, {b"a": pages_of(b"a", 4)}, PAGE_BYTES)
        preadv = os.preadv

        def cut_short_before(fd: int, buffers: list[memoryview], offset: int) -> int:
            os.truncate(tmp_path / "objects" / path_of(b"a"), 2 * PAGE_BYTES + 100)
            return preadv(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", cut_short_before)
        out = np.empty((6, PAGE_BYTES), np.uint8)
        extents = [(b"a", 0, 2, 0), (b"a", 1, 2, 2), (b"a", 3, 1, 4), (b"a", 4, 1, 5)]
        status = await store.read(make_extents(versions, extents), out)
        ok, absent, failed = PageStatus.OK, PageStatus.ABSENT, PageStatus.FAILED
        assert status.tolist() == [ok, failed, failed, absent]
        np.testing.assert_array_equal(out[:2], pages_of(b"a", 2))

    async def test_a_file_without_a_whole_page_is_no_object(
        self, store: FileBackend, tmp_path: Path
    ) -> None:
        await put_objects(store, {b"a": pages_of(b"a", 4)}, PAGE_BYTES)
        os.truncate(tmp_path / "objects" / path_of(b"a"), 100)
        assert (await store.stat([b"a"])).pages.tolist() == [-1]

    async def test_a_folder_in_the_place_of_an_object_is_no_object(
        self, store: FileBackend, tmp_path: Path
    ) -> None:
        (tmp_path / "objects" / path_of(b"a")).mkdir(parents=True)
        assert (await store.stat([b"a"])).pages.tolist() == [-1]
        result = await store.put(make_objects({b"a": pages_of(b"a")}, PAGE_BYTES))
        assert result.status.tolist() == [PageStatus.FAILED]
        assert (await store.delete([b"a"])).tolist() == [PageStatus.FAILED]

    async def test_the_log_says_once_why_objects_fail(
        self, store: FileBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for key in (b"a", b"b"):
            (tmp_path / "objects" / path_of(key)).mkdir(parents=True)
        await store.put(make_objects({b"a": pages_of(b"a"), b"b": pages_of(b"b")}, PAGE_BYTES))
        await store.put(make_objects({b"a": pages_of(b"a")}, PAGE_BYTES))
        await store.delete([b"a"])
        said = [record.getMessage().removeprefix(f"{tmp_path}/") for record in caplog.records]
        assert said == [
            "objects: an object cannot be written: Is a directory",
            "objects: an object cannot be removed: Is a directory",
        ]

    async def test_a_device_error_fails_the_extent(
        self, store: FileBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        versions = await put_objects(store, {b"a": pages_of(b"a", 2)}, PAGE_BYTES)
        preadv = os.preadv

        def bad_second_page(fd: int, buffers: list[memoryview], offset: int) -> int:
            if offset == PAGE_BYTES:
                raise OSError(errno.EIO, "Input/output error")
            return preadv(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", bad_second_page)
        out = np.empty((2, PAGE_BYTES), np.uint8)
        status = await store.read(make_extents(versions, [(b"a", 0, 1, 0), (b"a", 1, 1, 1)]), out)
        assert status.tolist() == [PageStatus.OK, PageStatus.FAILED]

    async def test_short_reads_are_continued(
        self, store: FileBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await put_objects(store, {b"a": pages_of(b"a", 3)}, PAGE_BYTES)
        preadv = os.preadv
        monkeypatch.setattr(
            os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:100]], offset)
        )
        found = await read_objects(store, [b"a"], PAGE_BYTES)
        np.testing.assert_array_equal(found[b"a"], pages_of(b"a", 3))

    async def test_a_cancelled_read_waits_for_its_threads(
        self, store: FileBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        versions = await put_objects(store, {b"a": pages_of(b"a", 64)}, PAGE_BYTES)
        loop, begun, inside = asyncio.get_running_loop(), asyncio.Event(), set[int]()
        preadv = os.preadv

        def slow(fd: int, buffers: list[memoryview], offset: int) -> int:
            inside.add(offset)
            loop.call_soon_threadsafe(begun.set)
            count = sum(preadv(fd, buffers, offset) for _ in range(2000)) // 2000
            inside.discard(offset)
            return count

        monkeypatch.setattr(os, "preadv", slow)
        out = np.empty((64, PAGE_BYTES), np.uint8)
        extents = [(b"a", page, 1, page) for page in range(64)]
        task = asyncio.ensure_future(store.read(make_extents(versions, extents), out))
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert not inside


@pytest.mark.asyncio
class TestFullDisk:
    async def test_a_put_without_room_fails_and_leaves_nothing(
        self, store: FileBackend, tmp_path: Path
    ) -> None:
        objects = {b"large": pages_of(b"large", 20), b"small": pages_of(b"small", 2)}
        with file_size_limit(10 * PAGE_BYTES + 7):
            result = await store.put(make_objects(objects, PAGE_BYTES))
        assert result.status.tolist() == [PageStatus.FAILED, PageStatus.OK]
        assert result.versions[0] == 0
        assert (await store.stat([b"large", b"small"])).pages.tolist() == [-1, 2]
        assert list((tmp_path / "incoming").iterdir()) == []

    async def test_a_rewrite_without_room_keeps_the_old_object(self, store: FileBackend) -> None:
        old = await put_objects(store, {b"a": pages_of(b"a", 4, 1)}, PAGE_BYTES)
        with file_size_limit(10 * PAGE_BYTES):
            await store.put(make_objects({b"a": pages_of(b"a", 20, 2)}, PAGE_BYTES))
        assert (await store.stat([b"a"])).versions.tolist() == [old[b"a"]]
        found = await read_objects(store, [b"a"], PAGE_BYTES)
        np.testing.assert_array_equal(found[b"a"], pages_of(b"a", 4, 1))


@pytest.mark.asyncio
class TestLeftovers:
    async def test_what_a_killed_writer_left_is_removed(self, tmp_path: Path) -> None:
        await (await open_store(tmp_path)).close()
        leftover = tmp_path / "incoming" / "0123456789abcdef"
        leftover.write_bytes(b"half a page")
        await (await open_store(tmp_path)).close()
        assert not leftover.exists()

    async def test_what_a_living_writer_writes_is_kept(self, tmp_path: Path) -> None:
        await (await open_store(tmp_path)).close()
        growing = tmp_path / "incoming" / "0123456789abcdef"
        with growing.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            await (await open_store(tmp_path)).close()
            assert growing.exists()


@pytest.mark.asyncio
class TestOpening:
    async def test_the_root_is_made(self, tmp_path: Path) -> None:
        await (await open_store(tmp_path / "new" / "store")).close()
        assert (tmp_path / "new" / "store" / "objects").is_dir()

    async def test_an_opening_that_is_cancelled_makes_nothing_afterwards(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def open_slowly(root: Path, page_bytes: int) -> Layout:
            begun.set()
            go_on.wait(10)
            return open_layout(root, page_bytes)

        monkeypatch.setattr("kvtier_file.backend.open_layout", open_slowly)
        opening = asyncio.create_task(open_store(tmp_path / "store"))
        await asyncio.to_thread(begun.wait, 10)
        opening.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not opening.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert (tmp_path / "store" / "format.json").exists(), "it was waited for"

    async def test_a_root_of_other_pages_is_refused(self, tmp_path: Path) -> None:
        await (await open_store(tmp_path)).close()
        with pytest.raises(SettingsError, match="set page_bytes to 512"):
            await FileBackend.open({"root": tmp_path}, 4096)

    async def test_a_root_that_is_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(SettingsError, match=r"thesis\.tex is a file.*name another root"):
            await open_store(tmp_path / "thesis.tex")

    async def test_a_root_that_cannot_be_looked_at_is_told_in_one_line(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(BackendError, match="cannot be a file store: File name too long"):
            await open_store(tmp_path / ("x" * 300))

    async def test_a_root_that_holds_something_else_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(SettingsError, match=r"thesis\.tex.*empty directory"):
            await open_store(tmp_path)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "[" * 99_999])
    async def test_a_damaged_description_is_refused(self, tmp_path: Path, text: str) -> None:
        await (await open_store(tmp_path)).close()
        (tmp_path / "format.json").write_text(text)
        with pytest.raises(SettingsError, match=r"format\.json"):
            await open_store(tmp_path)

    async def test_another_version_of_the_format_is_refused(self, tmp_path: Path) -> None:
        await (await open_store(tmp_path)).close()
        marker = tmp_path / "format.json"
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "version": 2}))
        with pytest.raises(SettingsError, match="version 2"):
            await open_store(tmp_path)

    async def test_a_store_may_be_made_by_several_at_once(self, tmp_path: Path) -> None:
        for backend in await asyncio.gather(*(open_store(tmp_path) for _ in range(8))):
            await backend.close()

    async def test_a_store_that_another_makes_at_this_moment_is_opened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        exists = Path.exists

        def made_just_then(path: Path) -> bool:
            answer = exists(path)
            monkeypatch.undo()
            open_layout(tmp_path, PAGE_BYTES)
            return answer

        monkeypatch.setattr(Path, "exists", made_just_then)
        open_layout(tmp_path, PAGE_BYTES)
        assert exists is Path.exists

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "needs the option 'root'"),
            ({"root": 5}, "'root'"),
            ({"root": "x", "thread": 4}, "did you mean 'threads'"),
            ({"root": "x", "threads": 0}, "'threads'"),
            ({"root": "x", "threads": True}, "'threads'"),
            ({"root": "x", "sync": "yes"}, "'sync'"),
        ],
    )
    async def test_a_wrong_option_is_refused(
        self, options: dict[str, object], message: str
    ) -> None:
        with pytest.raises(SettingsError, match=message):
            await FileBackend.open(options, PAGE_BYTES)
