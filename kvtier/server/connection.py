"""One client of a server: its frames, the requests being answered, and the bound on them."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, cast

import numpy as np

from kvtier.backend import Backend
from kvtier.errors import KvtierError, LimitError, ProtocolError
from kvtier.pages import U8
from kvtier.server.answers import Answers, Buffers, reply_bytes
from kvtier.server.limits import ServerLimits
from kvtier.server.spool import SpoolRoom
from kvtier.server.uploads import Uploads
from kvtier.wire.codec import decode, encode
from kvtier.wire.frames import Frame, FrameLimits, FrameParser
from kvtier.wire.messages import ErrorCode, Failure, Hello, Message, Welcome

_LOG: Final = logging.getLogger(__name__)

_REQUEST_BYTES: Final = 4096
"""What a request counts for beside its payload, so that a flood of small ones is bounded too."""

_STRANGER: Final = FrameLimits(body_bytes_max=4096, payload_bytes_max=0)
"""What a connection may send before its HELLO was accepted."""


@dataclass(frozen=True, slots=True)
class Export:
    """What all connections of a server share.

    Attributes:
        backend: what is exported.
        page_bytes: the page size that it was opened with.
        token: what a client must present; None accepts all.
        limits: bounds.
        room: where uploads wait for their end.
        connections: the connections there are.
        tasks: what runs on their behalf.
    """

    backend: Backend
    page_bytes: int
    token: str | None
    limits: ServerLimits
    room: SpoolRoom = field(default_factory=SpoolRoom)
    connections: set[Connection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    number: int
    message: Message
    payload: U8 | None
    held_bytes: int
    """What it counts for against ``inflight_bytes_max``."""


class Connection(asyncio.BufferedProtocol):
    """Parses requests, starts as many as there is room for, writes their answers in any order."""

    def __init__(self, export: Export) -> None:
        self._export = export
        self._limits = export.limits
        self._parser = FrameParser(self, _STRANGER)
        self._answers: Answers | None = None  # once the HELLO was accepted
        self._waiting: deque[_Request] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._held_bytes = 0
        self._payload: U8 | None = None  # of the PUT that is arriving
        self._reading = True
        self._finishing = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = asyncio.Event()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._export.connections.add(self)
        self._silence = asyncio.get_running_loop().call_later(
            self._limits.hello_timeout_s, self._refuse, ErrorCode.DENIED, "no HELLO came in time"
        )
        if len(self._export.connections) > self._limits.connections_max:
            self._refuse(ErrorCode.LIMIT, "the server has all the connections that it may have")

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the parser knows better
        return self._parser.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._parser.buffer_updated(nbytes)
        except ProtocolError as error:
            self._refuse(ErrorCode.PROTOCOL, str(error))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - all are an end
        self._silence.cancel()
        self._export.connections.discard(self)
        self._finishing = True
        self._waiting.clear()
        for task in self._running:
            task.cancel()
        if self._answers is not None:
            self._spawn(self._answers.close())
        self._closed.set()

    # What the parser calls.

    def place_payload(self, frame: Frame) -> list[memoryview] | None:
        if self._finishing:
            return None
        self._payload = np.empty(frame.payload_bytes, np.uint8)
        return [self._payload.data]

    def take_frame(self, frame: Frame) -> None:
        payload, self._payload = self._payload, None
        if self._finishing:
            return
        message = decode(frame)
        if self._answers is None:
            self._greet(frame.request, message)
            return
        held_bytes = _REQUEST_BYTES + len(frame.body) + frame.payload_bytes
        held_bytes += reply_bytes(message, self._export.page_bytes)
        self._waiting.append(_Request(frame.request, message, payload, held_bytes))
        self._start_waiting()

    # What the server calls.

    async def finish(self, grace_s: float) -> None:
        """Answer what was received and close; after ``grace_s`` seconds cut what is not done."""
        self._finishing = True
        self._read_on(False)
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
                self._transport.close()
                await self._closed.wait()
        except TimeoutError:
            self._transport.abort()
            await self._closed.wait()

    # Requests.

    def _greet(self, number: int, message: Message) -> None:
        """Accept a client, or refuse it."""
        export = self._export
        if not isinstance(message, Hello):
            self._refuse(ErrorCode.PROTOCOL, "the first frame must be a HELLO")
            return
        if export.token is not None and not hmac.compare_digest(
            message.token, export.token.encode()
        ):
            self._refuse(ErrorCode.DENIED, "the token is missing or wrong: set option 'token'")
            return
        self._silence.cancel()
        self._parser.limits = self._limits.frame
        limits, backend, page_bytes = self._limits, export.backend, export.page_bytes
        capability = limits.capability(backend.capability, page_bytes)
        object_pages_max = capability.object_pages_max
        uploads = Uploads(backend, page_bytes, object_pages_max, limits.uploads_max, export.room)
        self._answers = Answers(backend, page_bytes, object_pages_max, uploads, limits)
        welcome = Welcome(page_bytes, limits.frame.payload_bytes_max, capability)
        self._write([encode(welcome, number)])

    def _start_waiting(self) -> None:
        """Start what there is room for; read on only when nothing is left waiting."""
        while self._waiting and self._has_room(self._waiting[0].held_bytes):
            request = self._waiting.popleft()
            self._held_bytes += request.held_bytes
            self._idle.clear()
            task = self._spawn(self._serve(request))
            self._running.add(task)
            task.add_done_callback(partial(self._ended, request.held_bytes))
        self._read_on(not self._waiting and not self._finishing)

    def _has_room(self, held_bytes: int) -> bool:
        return (
            self._held_bytes == 0
            or self._held_bytes + held_bytes <= self._limits.inflight_bytes_max
        )

    async def _serve(self, request: _Request) -> None:
        """Answer one request; it is held until its answer left for the kernel."""
        try:
            self._write(await self._answer(request))
        except ProtocolError as error:
            self._refuse(ErrorCode.PROTOCOL, str(error))
        else:
            await self._writable.wait()

    async def _answer(self, request: _Request) -> Buffers:
        assert self._answers is not None
        try:
            return await self._answers.answer(request.number, request.message, request.payload)
        except ProtocolError:
            raise
        except LimitError as error:
            failure = Failure(ErrorCode.LIMIT, str(error))
        except KvtierError as error:
            failure = Failure(ErrorCode.BACKEND, str(error))
        except Exception as error:  # a defect of the backend must not end its other clients
            _LOG.exception("the exported backend raised what no backend may raise")
            failure = Failure(ErrorCode.BACKEND, f"{type(error).__name__}: {error}")
        return [encode(failure, request.number)]

    def _ended(self, held_bytes: int, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._held_bytes -= held_bytes
        self._start_waiting()
        if not self._running:
            self._idle.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._export.tasks.add(task)
        task.add_done_callback(self._export.tasks.discard)
        return task

    # Bytes.

    def _write(self, buffers: Buffers) -> None:
        if self._transport.is_closing():
            return
        for buffer in buffers:
            self._transport.write(buffer)

    def _read_on(self, reading: bool) -> None:
        if reading == self._reading or self._transport.is_closing():
            return
        self._reading = reading
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _refuse(self, code: ErrorCode, text: str) -> None:
        """Say why, and hang up."""
        if self._finishing:
            return
        self._finishing = True
        self._write([encode(Failure(code, text), 0)])
        self._transport.close()
