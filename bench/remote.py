"""Pages from another process: ``kvtier_tcp`` and ``kvtier_redis`` beside redis-py by hand.

Batches of 4 KiB pages over loopback, a few in flight, each store in a process of its own. The peers
are written by hand with redis-py and hiredis: one ``MGET`` of a value per page; and a pipeline of
the same ``HMGET`` commands that ``kvtier_redis`` sends. The limit is the bytes alone: a blocking
socket that receives as much from a process which sends it from memory. All take turns in one run,
read the same pages in the same order, and put them into rows; each must deliver every batch
right before anything is timed. Needs ``redis-server`` on the PATH, and the extra ``redis``.

    python bench/remote.py [--quick] [--json FILE] [--seed N]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import redis
import uvloop
from kvtier_redis import RedisBackend
from kvtier_redis.layout import HEADER_FIELD, Layout
from kvtier_tcp import TcpBackend
from redis.asyncio import Redis as AsyncRedis

from kvtier.backend import Backend, ExtentBatch
from kvtier.environment import describe_environment
from kvtier.pages import U8
from kvtier.testing.batches import make_extents, put_objects
from kvtier.testing.pages import make_pages

PAGE_BYTES = 4096
OBJECT_PAGES = 256
PAGES_OF_AN_OBJECT = 8
"""Pages of one object in a batch."""

IN_FLIGHT = 4
Read = Callable[[int, U8], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        objects: in each store.
        batches: of one contender in one turn.
        rounds: turns of each contender.
    """

    objects: int
    batches: int
    rounds: int


QUICK = Scale(objects=32, batches=64, rounds=5)
FULL = Scale(objects=256, batches=512, rounds=21)


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch, in the words of each contender.

    Attributes:
        expected: u8[n, PAGE_BYTES].
        extents: for a backend: by the name of the store, for each has versions of its own.
        values: the keys of ``MGET``.
        calls: name and fields of each ``HMGET``.
    """

    expected: U8
    extents: dict[str, ExtentBatch]
    values: list[bytes]
    calls: list[tuple[bytes, list[bytes]]]


@dataclass(slots=True)
class Samples:
    """What was measured of one contender: one entry a turn, of ``batch_s`` one a batch."""

    pages_per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    batch_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores, with the same objects in all.

    Attributes:
        tcp: behind ``kvtier serve``, over the memory backend.
        redis: in ``redis-server``.
        client: of redis-py, on the same server.
        flood: a socket that sends as many bytes as it is told.
    """

    tcp: Backend
    redis: Backend
    client: AsyncRedis
    flood: socket.socket


@contextlib.contextmanager
def process(command: Sequence[str], directory: str) -> Iterator[subprocess.Popen[str]]:
    """A process, ended afterwards."""
    running = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True)
    try:
        yield running
    finally:
        running.terminate()
        running.wait(10)
        assert running.stdout is not None
        running.stdout.close()


@contextlib.contextmanager
def kvtier_server(directory: str) -> Iterator[str]:
    """``kvtier serve`` over the memory backend; yields its url."""
    command = [sys.executable, "-m", "kvtier", "serve", "--backend", "memory", "--port", "0"]
    with process([*command, "--set", f"page_bytes={PAGE_BYTES}"], directory) as running:
        assert running.stdout is not None
        yield running.stdout.readline().split()[-1]


@contextlib.contextmanager
def redis_server(directory: str) -> Iterator[str]:
    """``redis-server``, which keeps nothing on disk; yields its url."""
    path = shutil.which("redis-server")
    if path is None:
        raise SystemExit("bench/remote.py: redis-server is not on the PATH: install it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [path, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", directory]
    with process(command, directory) as running:
        assert running.stdout is not None
        while "Ready to accept" not in (line := running.stdout.readline()):
            if not line:
                raise SystemExit("bench/remote.py: redis-server did not start")
        yield f"redis://127.0.0.1:{port}"


@contextlib.contextmanager
def flooding() -> Iterator[socket.socket]:
    """A connection to a process that answers a number (u32) with so many pages."""
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=flood, args=(there,), daemon=True)
    child.start()
    try:
        if not here.poll(30):
            raise SystemExit("bench/remote.py: the process of the limit did not start")
        with socket.create_connection(("127.0.0.1", here.recv())) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection
    finally:
        child.terminate()
        child.join(10)


def flood(pipe: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send(server.getsockname()[1])
        connection, _ = server.accept()
        with connection:
            memory = memoryview(bytes(1024 * PAGE_BYTES))
            while asked := connection.recv(4, socket.MSG_WAITALL):
                connection.sendall(memory[: int.from_bytes(asked, "little") * PAGE_BYTES])


@contextlib.asynccontextmanager
async def open_stores(
    scale: Scale, directory: str
) -> AsyncIterator[tuple[Stores, list[dict[bytes, int]]]]:
    """The stores, filled, and the versions in the first two."""
    with kvtier_server(directory) as tcp, redis_server(directory) as url, flooding() as flood:
        client = AsyncRedis.from_url(url, max_connections=IN_FLIGHT, protocol=2)
        stores = Stores(
            tcp=await TcpBackend.open({"url": tcp}, PAGE_BYTES),
            redis=await RedisBackend.open({"url": url, "connections": IN_FLIGHT}, PAGE_BYTES),
            client=client,
            flood=flood,
        )
        versions: list[dict[bytes, int]] = [{}, {}]
        for number in range(scale.objects):
            key = b"object-%d" % number
            pages = make_pages(key, 0, OBJECT_PAGES, PAGE_BYTES)
            for store, known in zip((stores.tcp, stores.redis), versions, strict=True):
                known.update(await put_objects(store, {key: pages}, PAGE_BYTES))
            values = {b"%b:%d" % (key, page): row.tobytes() for page, row in enumerate(pages)}
            await client.mset(values)
        yield stores, versions
        await stores.tcp.close()
        await stores.redis.close()
        await client.aclose()


def make_batches(
    scale: Scale, pages: int, versions: list[dict[bytes, int]], rng: np.random.Generator
) -> list[Batch]:
    """Batches of distinct pages, some of each of a few objects."""
    layout = Layout("kvtier", PAGE_BYTES)
    batches: list[Batch] = []
    for _ in range(16):
        numbers = rng.choice(scale.objects, pages // PAGES_OF_AN_OBJECT, replace=False)
        keys = [b"object-%d" % number for number in numbers]
        chosen = {
            key: rng.choice(OBJECT_PAGES, PAGES_OF_AN_OBJECT, replace=False).tolist()
            for key in keys
        }
        spread = [(key, page) for key, some in chosen.items() for page in some]
        extents = [(key, page, 1, row) for row, (key, page) in enumerate(spread)]
        wanted = [{key: known[key] for key in keys} for known in versions]
        batches.append(
            Batch(
                expected=np.concatenate(
                    [
                        make_pages(key, 0, OBJECT_PAGES, PAGE_BYTES)[some]
                        for key, some in chosen.items()
                    ]
                ),
                extents={
                    name: make_extents(known, extents)
                    for name, known in zip(("tcp", "redis"), wanted, strict=True)
                },
                values=[b"%b:%d" % one for one in spread],
                calls=[
                    (
                        layout.name_of(key),
                        [HEADER_FIELD, *(page.to_bytes(4, "big") for page in some)],
                    )
                    for key, some in chosen.items()
                ],
            )
        )
    return batches


def contenders(stores: Stores, batches: list[Batch]) -> dict[str, Read]:
    async def tcp(number: int, out: U8) -> None:
        if (await stores.tcp.read(batches[number].extents["tcp"], out)).any():
            raise SystemExit("bench/remote.py: kvtier_tcp failed a read")

    async def through_redis(number: int, out: U8) -> None:
        if (await stores.redis.read(batches[number].extents["redis"], out)).any():
            raise SystemExit("bench/remote.py: kvtier_redis failed a read")

    async def mget(number: int, out: U8) -> None:
        place(await stores.client.mget(batches[number].values), out)

    async def pipeline(number: int, out: U8) -> None:
        pipe = stores.client.pipeline(transaction=False)
        for name, fields in batches[number].calls:
            pipe.hmget(name, fields)
        replies = await pipe.execute()
        place([page for _, *pages in replies for page in pages], out)

    return {"kvtier_tcp": tcp, "MGET": mget, "kvtier_redis": through_redis, "pipeline": pipeline}


def place(values: Sequence[Any], out: U8) -> None:
    """Put values into rows, one after the other, in the fastest way there is by hand."""
    rows = out.reshape(-1).data
    for start, value in zip(range(0, len(rows), PAGE_BYTES), values, strict=True):
        rows[start : start + PAGE_BYTES] = value


async def turn(read: Read, count: int, pages: int, samples: Samples) -> None:
    """One contender's turn: ``count`` batches, ``IN_FLIGHT`` at once."""
    numbers = iter(range(count))

    async def work() -> None:
        out = np.empty((pages, PAGE_BYTES), np.uint8)
        for number in numbers:
            begun = time.perf_counter()
            await read(number % 16, out)
            samples.batch_s.append(time.perf_counter() - begun)

    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
    samples.cpu_us.append((time.process_time() - cpu) / (count * pages) * 1e6)
    samples.pages_per_s.append(count * pages / (time.perf_counter() - start))


def turn_of_flood(connection: socket.socket, count: int, pages: int, samples: Samples) -> None:
    """The limit's turn: as many bytes, asked for ``IN_FLIGHT`` batches ahead."""
    memory = memoryview(bytearray(pages * PAGE_BYTES))
    asked = pages.to_bytes(4, "little")
    start, cpu = time.perf_counter(), time.process_time()
    connection.sendall(asked * IN_FLIGHT)
    for number in range(count):
        left = memory
        while left:
            left = left[connection.recv_into(left) :]
        if number + IN_FLIGHT < count:
            connection.sendall(asked)
    samples.cpu_us.append((time.process_time() - cpu) / (count * pages) * 1e6)
    samples.pages_per_s.append(count * pages / (time.perf_counter() - start))


async def measure(
    stores: Stores, batches: list[Batch], pages: int, scale: Scale
) -> list[dict[str, Any]]:
    """Two rows: each backend beside its peer."""
    reads = contenders(stores, batches)
    for name, read in reads.items():
        for number, batch in enumerate(batches):
            out = np.zeros((pages, PAGE_BYTES), np.uint8)
            await read(number, out)
            if not np.array_equal(out, batch.expected):
                raise SystemExit(f"bench/remote.py: {name} delivered a wrong page")
    samples = {name: Samples() for name in (*reads, "limit")}
    for _ in range(scale.rounds):
        for name, read in reads.items():
            await turn(read, scale.batches, pages, samples[name])
        turn_of_flood(stores.flood, scale.batches, pages, samples["limit"])
    return [
        row(f"kvtier_tcp beside MGET, batches of {pages}", samples, "kvtier_tcp", "MGET"),
        row(
            f"kvtier_redis beside pipeline, batches of {pages}", samples, "kvtier_redis", "pipeline"
        ),
    ]


def row(case: str, samples: dict[str, Samples], ours: str, peer: str) -> dict[str, Any]:
    names = {"kvtier": ours, "peer": peer, "limit": "limit"}
    rates = {key: statistics.median(samples[name].pages_per_s) for key, name in names.items()}
    cpu_us = {key: statistics.median(samples[name].cpu_us) for key, name in names.items()}
    both = [
        (a, b) for a, b in zip(samples[ours].pages_per_s, samples[peer].pages_per_s, strict=True)
    ]
    return {
        "case": f"{case} pages of {PAGE_BYTES} B, {IN_FLIGHT} in flight",
        **rates,
        "unit": "pages/s",
        "ratio_peer": statistics.median(a / b for a, b in both),
        "ratio_limit": rates["kvtier"] / rates["limit"],
        "client_cpu_us_per_page": cpu_us,
        "batch_ms_p99": {
            key: float(np.quantile(samples[name].batch_s, 0.99)) * 1e3
            for key, name in names.items()
            if samples[name].batch_s
        },
    }


async def run(scale: Scale, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="kvtier-bench-") as directory:
        async with open_stores(scale, directory) as (stores, versions):
            for pages in (64, 256):
                batches = make_batches(scale, pages, versions, rng)
                rows += await measure(stores, batches, pages, scale)
    environment = describe_environment() | {"redis-py": redis.__version__}
    return {"environment": environment, "seed": seed, "rows": rows}


def print_row(row: dict[str, Any]) -> None:
    cpu_us, p99 = row["client_cpu_us_per_page"], row["batch_ms_p99"]
    print(
        f"{row['case']}: {row['kvtier']:,.0f} {row['unit']}, {row['ratio_peer']:.2f} of the peer, "
        f"{row['ratio_limit']:.2f} of the socket; client CPU {cpu_us['kvtier']:.2f} us a page "
        f"(peer {cpu_us['peer']:.2f}), p99 {p99['kvtier']:.2f} ms a batch (peer {p99['peer']:.2f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    result = uvloop.run(run(QUICK if arguments.quick else FULL, arguments.seed))
    for one in result["rows"]:
        print_row(one)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
