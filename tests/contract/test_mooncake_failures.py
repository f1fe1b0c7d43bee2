"""What a Mooncake does that a dict does not: hosts leave, the master dies, values are evicted."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import pytest_asyncio
from kvtier_mooncake import MooncakeBackend
from kvtier_mooncake.layout import Head, chunk_names
from kvtier_mooncake.settings import parse_settings
from mooncake_servers import Master, running
from servers import free_port

from kvtier.errors import BackendError, SettingsError
from kvtier.pages import U8, PageStatus
from kvtier.testing.batches import make_extents, make_objects, put_objects, read_objects
from kvtier.testing.pages import make_pages

PAGE_BYTES = 512
BOUND_S = 20
HELD_UP_S = 30
"""How long Mooncake's client waits for a master that is silent."""

pytestmark = pytest.mark.asyncio


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Master]:
    """A Mooncake that stays as it is."""
    with running(tmp_path_factory.mktemp("mooncake")) as master:
        master.add_host()
        yield master


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    """A Mooncake that a test may break; it forgets hosts soon."""
    with running(tmp_path, "--client_ttl=2") as master:
        master.add_host()
        yield master


@pytest_asyncio.fixture
async def backend(steady: Master) -> AsyncIterator[MooncakeBackend]:
    backend = await share(steady)
    yield backend
    await backend.close()


async def open_on(master: Master, **options: object) -> MooncakeBackend:
    return await MooncakeBackend.open({"master": master.address, **options}, PAGE_BYTES)


async def share(master: Master, **options: object) -> MooncakeBackend:
    """A backend in a namespace of its own, over a client that others use too."""
    given = {"master": master.address, "namespace": uuid4().hex, **options}
    settings = parse_settings(given, PAGE_BYTES)
    return MooncakeBackend(await master.link(given, PAGE_BYTES), settings, PAGE_BYTES)


def pages_of(key: bytes, count: int = 1, generation: int = 0) -> U8:
    return make_pages(key, generation, count, PAGE_BYTES)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, "'master'"),
        ({"master": "nowhere"}, "HOST:PORT"),
        ({"master": "h:99999"}, "HOST:PORT"),
        ({"protocol": "quic"}, "tcp, rdma"),
        ({"metadata": "nonsense"}, "P2PHANDSHAKE"),
        ({"metadata": "http://[::1"}, "P2PHANDSHAKE"),
        ({"metadata": "etcd://h"}, "P2PHANDSHAKE"),
        ({"metadata": "redis://:password@h"}, "'…h': it is P2PHANDSHAKE"),
        ({"admin": "9003"}, "'admin'"),
        ({"host": "a host"}, "'host'"),
        ({"device": "mlx5 0"}, "'device'"),
        ({"namespace": ""}, "'namespace'"),
        ({"segment_bytes": 1000}, "'segment_bytes'"),
        ({"segment_bytes": -1}, "'segment_bytes'"),
        ({"segment_bytes": 1 << 60}, "this machine has"),
        ({"buffer_bytes": 4096}, "'buffer_bytes'"),
        ({"chunk_bytes": 511}, "'chunk_bytes'"),
        ({"threads": 0}, "'threads'"),
        ({"threads": 13}, "'threads'"),
        ({"replicas": 0}, "'replicas'"),
        ({"timeout_s": 0}, "'timeout_s'"),
        ({"connect_timeout_s": float("inf")}, "'connect_timeout_s'"),
        ({"chunks": 1}, "no option 'chunks'"),
    ],
)
async def test_a_wrong_option_is_refused_by_name(options: dict[str, object], names: str) -> None:
    given = {"master": "127.0.0.1:1", **options} if options else {}
    with pytest.raises(SettingsError, match="mooncake") as refused:
        await MooncakeBackend.open(given, PAGE_BYTES)
    assert names in str(refused.value)
    assert "\n" not in str(refused.value)


async def test_a_master_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(BackendError, match="no Mooncake master can be reached"):
        await MooncakeBackend.open({"master": f"127.0.0.1:{free_port()}"}, PAGE_BYTES)


async def test_a_metadata_server_that_is_not_there_is_told_at_once(steady: Master) -> None:
    with pytest.raises(BackendError, match="no Mooncake metadata server can be reached"):
        await open_on(steady, metadata=f"http://127.0.0.1:{free_port()}/metadata")


async def test_a_server_that_is_no_master_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = {"master": f"127.0.0.1:{silent.getsockname()[1]}", "connect_timeout_s": 1.0}
        async with asyncio.timeout(BOUND_S):
            with pytest.raises(BackendError, match="did not take a client"):
                await MooncakeBackend.open(options, PAGE_BYTES)


async def test_a_client_that_cannot_be_loaded_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mooncake").mkdir()
    (tmp_path / "mooncake" / "__init__.py").touch()
    (tmp_path / "mooncake" / "store.py").write_text("raise ImportError('libibverbs.so.1: none')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = {"master": f"127.0.0.1:{silent.getsockname()[1]}"}
        with pytest.raises(BackendError, match=r"ibverbs.so.1: none\): pip install 'kvtier"):
            await MooncakeBackend.open(options, PAGE_BYTES)


async def test_an_admin_server_that_is_none_is_told_when_keys_are_listed(steady: Master) -> None:
    backend = await share(steady, admin=f"127.0.0.1:{free_port()}")
    with pytest.raises(BackendError, match="'admin'"):
        await anext(aiter(backend.keys()))
    await backend.close()


async def test_without_an_admin_server_nothing_is_listed(backend: MooncakeBackend) -> None:
    assert not backend.capability.listable
    with pytest.raises(BackendError, match="'admin'"):
        await anext(aiter(backend.keys()))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_calls_end_in_time_once_the_master_is_gone(
    master: Master, how: signal.Signals
) -> None:
    backend = await open_on(master, timeout_s=1.5)
    versions = await put_objects(backend, {b"a": pages_of(b"a")}, PAGE_BYTES)
    master.process.send_signal(how)
    batch = make_extents(versions, [(b"a", 0, 1, 0)])
    out = np.empty((1, PAGE_BYTES), np.uint8)
    async with asyncio.timeout(BOUND_S):
        calls = await asyncio.gather(
            backend.stat([b"a"]),
            backend.read(batch, out),
            backend.put(make_objects({b"b": pages_of(b"b")}, PAGE_BYTES)),
            backend.delete([b"a"]),
            return_exceptions=True,
        )
    stat, read, put, delete = calls
    assert isinstance(stat, BackendError)
    for failed in (read, delete):
        assert isinstance(failed, BackendError) or failed.tolist() == [PageStatus.FAILED]
    assert isinstance(put, BackendError) or put.status.tolist() == [PageStatus.FAILED]
    async with asyncio.timeout(BOUND_S):
        await backend.close()


async def test_what_lay_on_a_host_that_died_is_not_there(master: Master) -> None:
    backend = await open_on(master)
    versions = await put_objects(backend, {b"a": pages_of(b"a", 3)}, PAGE_BYTES)
    master.hosts[0].kill()
    out = np.empty((3, PAGE_BYTES), np.uint8)
    async with asyncio.timeout(BOUND_S):
        status = await backend.read(make_extents(versions, [(b"a", 0, 3, 0)]), out)
        stats = await backend.stat([b"a"])
    assert status.tolist() in ([PageStatus.FAILED], [PageStatus.ABSENT])
    assert stats.pages.tolist() == [-1]
    master.add_host()
    await until_forgotten(backend)
    await put_objects(backend, {b"a": pages_of(b"a", 3, 1)}, PAGE_BYTES)
    found = await read_objects(backend, [b"a"], PAGE_BYTES)
    np.testing.assert_array_equal(found[b"a"], pages_of(b"a", 3, 1))
    await backend.close()


async def until_forgotten(backend: MooncakeBackend) -> None:
    """Wait until the master places nothing on the host that died: every one of many puts works."""
    batch = make_objects({b"try %d" % number: pages_of(b"") for number in range(16)}, PAGE_BYTES)
    async with asyncio.timeout(BOUND_S):
        while (await backend.put(batch)).status.any():
            pass


async def test_an_object_that_lost_a_chunk_is_not_there(steady: Master) -> None:
    backend = await share(steady, chunk_bytes=2 * PAGE_BYTES)
    objects = {b"a": pages_of(b"a", 5), b"b": pages_of(b"b", 5)}
    versions = await put_objects(backend, objects, PAGE_BYTES)
    head = Head(versions[b"a"], 5, 2)
    second = chunk_names(backend._names.head(b"a"), head)[1]
    assert backend._link.store.batch_remove([second], True) == [0]
    out = np.zeros((10, PAGE_BYTES), np.uint8)
    extents = [(b"a", 0, 2, 0), (b"a", 1, 2, 2), (b"b", 0, 5, 4), (b"a", 4, 1, 9)]
    status = await backend.read(make_extents(versions, extents), out)
    ok, absent = PageStatus.OK, PageStatus.ABSENT
    assert status.tolist() == [ok, absent, ok, ok]
    np.testing.assert_array_equal(out[4:9], pages_of(b"b", 5))
    np.testing.assert_array_equal(out[9], pages_of(b"a", 5)[4])
    assert (await backend.stat([b"a", b"b"])).pages.tolist() == [-1, 5]


async def test_a_store_that_overflows_serves_what_it_still_has(tmp_path: Path) -> None:
    flags = ("--default_kv_lease_ttl=50", "--eviction_high_watermark_ratio=0.5")
    with running(tmp_path, *flags) as master:
        master.add_host("32 MB")
        backend = await open_on(master)
        kept = 0
        for number in range(60):
            key = b"%d" % number
            batch = make_objects({key: pages_of(key, 2048)}, PAGE_BYTES)
            kept += (await backend.put(batch)).status.tolist() == [PageStatus.OK]
        keys = [b"%d" % number for number in range(60)]
        found = await read_objects(backend, keys, PAGE_BYTES)
        whole = {key: pages for key, pages in found.items() if pages is not None}
        for key, pages in whole.items():
            np.testing.assert_array_equal(pages, pages_of(key, 2048))
        assert 0 < len(whole) < kept
        await backend.close()


async def test_chunks_of_what_was_replaced_or_deleted_go_once_nobody_can_read_them(
    tmp_path: Path,
) -> None:
    with running(tmp_path, "--default_kv_lease_ttl=50") as master:
        master.add_host()
        backend = await open_on(master)
        for generation in range(3):
            await put_objects(backend, {b"a": pages_of(b"a", 4, generation)}, PAGE_BYTES)
            await read_objects(backend, [b"a"], PAGE_BYTES)
        await put_objects(backend, {b"b": pages_of(b"b", 4)}, PAGE_BYTES)
        await backend.delete([b"b"])
        async with asyncio.timeout(BOUND_S):
            while len(master.names()) > 2:
                await asyncio.sleep(0.1)
                await backend.delete([b"none"])  # any change sweeps
        await backend.close()


async def test_a_head_whose_bytes_are_wrong_is_none(backend: MooncakeBackend) -> None:
    """As of one that is half written, or whose memory was given to another value."""
    versions = await put_objects(backend, {b"a": pages_of(b"a")}, PAGE_BYTES)
    store, name = backend._link.store, backend._names.head(b"a")
    record = store.get(name)
    assert store.upsert(name, record[:-1] + bytes([record[-1] ^ 1])) == 0
    out = np.empty((1, PAGE_BYTES), np.uint8)
    assert await backend.read(make_extents(versions, [(b"a", 0, 1, 0)]), out) == PageStatus.ABSENT
    assert (await backend.stat([b"a"])).pages.tolist() == [-1]
    again = await put_objects(backend, {b"a": pages_of(b"a")}, PAGE_BYTES)
    assert await backend.read(make_extents(again, [(b"a", 0, 1, 0)]), out) == PageStatus.OK


async def test_writers_of_one_key_in_two_clients_leave_one_of_them_whole(
    steady: Master,
) -> None:
    other = await open_on(steady, namespace="contended")
    backend = await share(steady, namespace="contended")
    contents: dict[int, int] = {}

    async def write(writer: MooncakeBackend, first: int) -> None:
        for generation in range(first, 60, 2):
            batch = {b"a": pages_of(b"a", 40, generation)}
            contents[(await put_objects(writer, batch, PAGE_BYTES))[b"a"]] = generation

    await asyncio.gather(write(backend, 0), write(other, 1))
    for reader in (backend, other):
        version = int((await reader.stat([b"a"])).versions[0])
        found = await read_objects(reader, [b"a"], PAGE_BYTES)
        np.testing.assert_array_equal(found[b"a"], pages_of(b"a", 40, contents[version]))
    await other.close()


async def test_a_cancelled_call_returns_while_its_thread_is_held_up(
    steady: Master, backend: MooncakeBackend
) -> None:
    versions = await put_objects(backend, {b"a": pages_of(b"a")}, PAGE_BYTES)
    out = np.zeros((1, PAGE_BYTES), np.uint8)
    steady.process.send_signal(signal.SIGSTOP)
    try:
        read = asyncio.ensure_future(backend.read(make_extents(versions, [(b"a", 0, 1, 0)]), out))
        await asyncio.wait([read], timeout=0.2)
        assert not read.done()
        read.cancel()
        async with asyncio.timeout(HELD_UP_S / 3):
            await asyncio.wait([read])
        assert read.cancelled()
    finally:
        steady.process.send_signal(signal.SIGCONT)
    found = await read_objects(backend, [b"a"], PAGE_BYTES)
    np.testing.assert_array_equal(found[b"a"], pages_of(b"a"))
    assert not out.any()
