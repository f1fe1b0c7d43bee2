"""A `kvtier serve` of its own process, and a proxy before it that can be told to misbehave."""

from __future__ import annotations

import asyncio
import random
import re
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

_HEADER = struct.Struct("<4sBBHQQQ")
_PIECE = 1 << 14


class Server:
    """The process; it can be killed, and started again at the same port."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.process: asyncio.subprocess.Process | None = None
        self.port = 0

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        options = ["--option", f"root='{self._root}'", "--option", "sync=false"]
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kvtier", "serve", "--port", str(self.port)),
            *("--backend", "file", *options),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 60)
        found = re.search(rb"tcp://127\.0\.0\.1:(\d+)", line)
        assert found is not None, line
        self.port = int(found[1])

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def kill(self) -> None:
        """End it at once, frozen or not."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
            self.process = None


class Proxy:
    """Passes connections on to a server; ``mode`` says what it does to answers.

    ``pass``, ``slow`` (a pause before each frame), ``reset`` (connections are cut), ``garbage``
    (a frame is replaced by noise) or ``truncate`` (a frame breaks off). It knows where frames
    begin, for noise inside a payload is what no protocol without checksums finds.
    """

    def __init__(self, server: Server, rng: random.Random) -> None:
        self._server = server
        self._rng = rng
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.mode = "pass"
        self.port = 0

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        away: asyncio.StreamWriter | None = None
        try:
            if self.mode == "reset":
                return
            answers, away = await asyncio.open_connection("127.0.0.1", self._server.port)
            self._writers.add(away)
            pumps = [
                asyncio.ensure_future(_pump(reader, away)),
                asyncio.ensure_future(self._answer(answers, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server is gone, or the test is over
        finally:
            for one in (writer, away):
                if one is not None:
                    self._writers.discard(one)
                    one.transport.abort()
            self._tasks.discard(task)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass frames on to the client."""
        while True:
            header = await reader.readexactly(_HEADER.size)
            *_, body_bytes, payload_bytes = _HEADER.unpack(header)
            left = body_bytes + payload_bytes
            if self.mode == "slow":
                await asyncio.sleep(self._rng.random() * 0.8)
            elif self.mode == "garbage":
                writer.write(self._rng.randbytes(256))
                await writer.drain()
                return
            elif self.mode == "truncate":
                writer.write(header)
                writer.write(await reader.readexactly(self._rng.randrange(left + 1)))
                await writer.drain()
                return
            writer.write(header)
            while left:
                piece = await reader.readexactly(min(left, _PIECE))
                writer.write(piece)
                await writer.drain()
                left -= len(piece)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE):
        writer.write(piece)
        await writer.drain()


@asynccontextmanager
async def troubled_remote(root: Path, rng: random.Random) -> AsyncIterator[tuple[Server, Proxy]]:
    """A server over files in ``root`` and the proxy before it; both end with the block."""
    server = Server(root)
    await server.start()
    proxy = Proxy(server, rng)
    listener = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    try:
        yield server, proxy
    finally:
        listener.close()
        await proxy.close()
        await server.kill()
