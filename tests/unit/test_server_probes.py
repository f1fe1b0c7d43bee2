"""Metrics and health over HTTP, and a server that ends while requests are in flight."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from kvtier_memory import MemoryBackend
from kvtier_tcp import TcpBackend
from server_peers import connect

from kvtier.clock import VirtualClock
from kvtier.errors import BackendError
from kvtier.server import Probes, Server, serve, start_probes
from kvtier.server.counting import HELP
from kvtier.settings import NegativeSettings
from kvtier.testing.batches import make_objects, put_objects, read_objects
from kvtier.testing.pages import make_pages
from kvtier.wire.messages import Stat
from kvtier.wrappers.negative import NegativeBackend

PAGE_BYTES = 512

pytestmark = pytest.mark.asyncio


class Store(MemoryBackend):
    """Fails or hangs when it is told to."""

    failure: BaseException | None = None

    async def stat(self, keys):  # type: ignore[no-untyped-def]
        if self.failure is not None:
            raise self.failure
        return await super().stat(keys)


@pytest_asyncio.fixture
async def store() -> AsyncIterator[Store]:
    store = Store(PAGE_BYTES, None)
    yield store
    await store.close()


@pytest_asyncio.fixture
async def server(store: Store) -> AsyncIterator[Server]:
    server = await serve(store, page_bytes=PAGE_BYTES)
    yield server
    await server.close()


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest_asyncio.fixture
async def probes(server: Server, clock: VirtualClock) -> AsyncIterator[Probes]:
    probes = await start_probes(server, "127.0.0.1", 0, clock)
    yield probes
    await probes.close()


async def get(probes: Probes, path: str, method: str = "GET") -> tuple[int, str]:
    return await raw(probes, f"{method} {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())


async def raw(probes: Probes, request: bytes) -> tuple[int, str]:
    host, _, port = probes.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    reply = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = reply.partition("\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


class TestHealth:
    async def test_a_server_that_works_is_alive_and_ready(self, probes: Probes) -> None:
        assert await get(probes, "/healthz") == (200, "ok\n")
        assert await get(probes, "/readyz?verbose") == (200, "ok\n")

    async def test_a_store_that_fails_makes_it_unready_until_it_works_again(
        self, probes: Probes, store: Store, clock: VirtualClock
    ) -> None:
        store.failure = BackendError("secret details")
        failing = (503, "the store behind the server fails: BackendError\n")
        assert await get(probes, "/readyz") == failing
        store.failure = None
        assert await get(probes, "/readyz") == failing  # it is asked once a second at most
        clock.advance_to(1_000_000_001)
        assert await get(probes, "/readyz") == (200, "ok\n")
        assert await get(probes, "/healthz") == (200, "ok\n")

    async def test_what_remembers_missing_keys_does_not_answer_for_the_store(
        self, store: Store, clock: VirtualClock
    ) -> None:
        remembers = NegativeBackend(store, NegativeSettings(ttl_s=3600.0), clock=clock)
        server = await serve(remembers, page_bytes=PAGE_BYTES)
        probes = await start_probes(server, "127.0.0.1", 0, clock)
        assert (await get(probes, "/readyz"))[0] == 200
        store.failure = BackendError("gone")
        clock.advance_to(1_000_000_001)
        assert (await get(probes, "/readyz"))[0] == 503
        await probes.close()
        await server.close()

    async def test_a_server_that_ends_is_alive_and_not_ready(
        self, probes: Probes, server: Server
    ) -> None:
        await server.close()
        assert await get(probes, "/readyz") == (503, "the server is ending\n")
        assert await get(probes, "/healthz") == (200, "ok\n")

    async def test_anything_else_is_refused(self, probes: Probes) -> None:
        assert (await get(probes, "/"))[0] == 404
        assert (await get(probes, "/healthz", "POST"))[0] == 405
        assert await get(probes, "/healthz", "HEAD") == (200, "")
        assert (await raw(probes, b"\xff\xff\r\n\r\n"))[0] == 405
        assert (await raw(probes, b"GET /" + b"a" * 20_000))[0] == 0
        assert (await get(probes, "/healthz"))[0] == 200


class TestMetrics:
    async def test_what_happened_is_told(self, probes: Probes, server: Server) -> None:
        backend = await TcpBackend.open({"url": server.url, "connections": 1}, PAGE_BYTES)
        await put_objects(backend, {b"a": make_pages(b"a", 0, 4, PAGE_BYTES)}, PAGE_BYTES)
        await read_objects(backend, [b"a"], PAGE_BYTES)
        _, text = await get(probes, "/metrics")
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
        assert samples["kvtier_connections"] == "1"
        assert samples["kvtier_ready"] == "1"
        assert samples['kvtier_requests_total{kind="Put",status="ok"}'] == "1"
        assert samples['kvtier_requests_total{kind="Read",status="ok"}'] == "1"
        assert samples['kvtier_request_seconds_count{kind="Put"}'] == "1"
        assert samples['kvtier_request_seconds_bucket{kind="Put",le="+Inf"}'] == "1"
        assert int(samples["kvtier_received_bytes_total"]) > 4 * PAGE_BYTES
        assert int(samples["kvtier_sent_bytes_total"]) > 4 * PAGE_BYTES
        await backend.close()

    async def test_the_text_is_of_prometheus_format(self, probes: Probes, server: Server) -> None:
        client = await connect(server)
        await client.ask(Stat((b"a",)))
        _, text = await get(probes, "/metrics")
        sample = re.compile(
            r'[a-z_]+(\{[a-z]+="[A-Za-z0-9_.+e-]+"(,[a-z]+="[A-Za-z0-9_.+e-]+")?\})? [0-9.e+-]+'
        )
        described = set()
        for line in text.splitlines():
            if line.startswith("# HELP "):
                described.add(line.split()[2])
            elif not line.startswith("# TYPE "):
                assert sample.fullmatch(line), line
                family = re.sub(r"(_bucket|_sum|_count)?(\{.*)? .*", "", line)
                assert family in described
        assert described == set(HELP)
        await client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_server_told_to_end_answers_what_it_began_and_leaves_no_half_object(
    tmp_path: Path, number: signal.Signals
) -> None:
    """A real process over files, with many puts in flight when the signal comes."""
    root = tmp_path / "store"
    command = [sys.executable, "-m", "kvtier", "serve", "--backend", "file", "--port", "0"]
    options = ["--option", f"root={root}", "--set", "page_bytes=4KiB", "--metrics-port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command, *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().split()[-1]
        assert b"metrics on http://127.0.0.1:" in await process.stdout.readline()
        backend = await TcpBackend.open({"url": url}, 4096)
        pages = {b"%d" % index: make_pages(b"%d" % index, 0, 64, 4096) for index in range(60)}
        puts = [
            asyncio.ensure_future(backend.put(make_objects({key: value}, 4096)))
            for key, value in pages.items()
        ]
        await asyncio.wait(puts, return_when=asyncio.FIRST_COMPLETED)
        process.send_signal(number)
        results = await asyncio.gather(*puts, return_exceptions=True)
        await backend.close()
        _, complaints = await asyncio.wait_for(process.communicate(), 60)
        assert (process.returncode, complaints) == (0, b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    answered = {
        key for key, result in zip(pages, results, strict=True) if not isinstance(result, Exception)
    }
    refused = [result for result in results if isinstance(result, BaseException)]
    assert answered
    assert all(isinstance(error, BackendError) for error in refused)
    from kvtier_file import FileBackend

    store = await FileBackend.open({"root": root}, 4096)
    found = await read_objects(store, list(pages), 4096)
    for key, expected in pages.items():
        there = found[key]
        assert key not in answered or there is not None
        if there is not None:
            np.testing.assert_array_equal(there, expected)
    await store.close()


async def test_a_second_signal_ends_a_server_at_once(tmp_path: Path) -> None:
    settings = ["--set", "serve.drain=1h"]
    config = tmp_path / "slow.toml"
    config.write_text(
        '[origin]\nbackend = "memory"\n[origin.latency]\n'
        'latency = "30 s"\niops = 1\nbandwidth = "1 GB/s"\n'
    )
    command = [sys.executable, "-m", "kvtier", "serve", "--config", str(config), "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command, *settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().split()[-1]
        backend = await TcpBackend.open({"url": url, "connections": 1}, 4096)
        batch = make_objects({b"a": make_pages(b"a", 0, 1, 4096)}, 4096)
        put = asyncio.ensure_future(backend.put(batch))
        await backend.stat([b"a"])  # answered behind the put: the server has begun it
        process.send_signal(signal.SIGTERM)
        host, _, port = url.removeprefix("tcp://").partition(":")
        while True:  # until it accepts nobody, it has not taken the signal
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                break
            writer.transport.abort()
            await asyncio.sleep(0.01)
        assert not put.done()
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == -signal.SIGTERM
        with pytest.raises(BackendError):
            await put
        await backend.close()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
