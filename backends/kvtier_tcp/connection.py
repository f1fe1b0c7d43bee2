"""One connection to a server: many requests in flight, answered in any order."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeVar, cast

from kvtier.backend import API_VERSION
from kvtier.errors import BackendError, KvtierError, LimitError, ProtocolError
from kvtier.pages import U8
from kvtier.wire.codec import decode, encode
from kvtier.wire.frames import Frame, FrameLimits, FrameParser
from kvtier.wire.messages import ErrorCode, Failure, Hello, Message, ReadReply, Welcome
from kvtier_tcp.address import Address
from kvtier_tcp.placement import Placement
from kvtier_tcp.reasons import connecting, hint, losing, never_welcomed

Reply = TypeVar("Reply", bound=Message)

_HEAD_BYTES: Final = 16 << 10
"""Head of the parser: what of a payload comes through it is copied, so it is kept short."""

_SILENT_S: Final = 5.0
"""How long a server may say nothing to a caller that leaves: else no caller with less patience
than ``timeout_s`` would ever find out that a connection is dead."""


@dataclass(slots=True, eq=False)
class _Pending:
    answer: asyncio.Future[Message]
    deadline_s: float
    head: bytes
    """The request's frame, without its payload."""
    payload: U8 | bytes | None
    placement: Placement | None
    reply: ReadReply | None = None
    """Decoded already, because its payload had to be placed."""


class Connection(asyncio.BufferedProtocol):
    """Made by :func:`connect`.

    Attributes:
        welcome: what the server said of itself; None until then.
        is_lost: nothing can be asked any more.
        uploading: held while an object goes in parts: one at a time, which any server takes.
        upload_numbers: those of the uploads to come.
    """

    welcome: Welcome | None = None

    def __init__(self, address: Address) -> None:
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._parser = FrameParser(self, FrameLimits(), _HEAD_BYTES)
        self._numbers = count(1)
        self._pending: dict[int, _Pending] = {}
        self._unsent: OrderedDict[int, _Pending] = OrderedDict()  # those that wait to be sent
        self._is_writable = True
        self._alarm: asyncio.Handle | None = None
        self._alarm_s = math.inf  # when it rings: at the first deadline, or before
        self._received = 0  # calls of the transport, to tell a slow server from a frozen one
        self._closed = asyncio.Event()
        self.uploading = asyncio.Lock()
        self.upload_numbers = count(1)
        self.is_lost = False

    async def ask(
        self,
        message: Message,
        expected: type[Reply],
        timeout_s: float,
        *,
        placement: Placement | None = None,
        payload: U8 | bytes | None = None,
    ) -> Reply:
        """Send a request and wait for its reply. Requests leave in the order of the calls.

        Args:
            message: the request.
            expected: the type of its reply.
            timeout_s: how long that may take. A server that sent nothing at all in that time is
                taken for dead, and the connection given up; also if the caller is cancelled
                after :data:`_SILENT_S` of silence.
            placement: takes the payload of the reply; not touched once this call ended.
            payload: follows the request; not read any more once this call ended.

        Raises:
            BackendError: the server failed, did not answer in time, or is gone.
            LimitError: the server refused the size of the request.
        """
        if self.is_lost:
            raise BackendError(f"origin {self._address}: connection lost")
        number, received, start_s = next(self._numbers), self._received, self._loop.time()
        head = encode(message, number, _size_of(payload))
        answer: asyncio.Future[Message] = self._loop.create_future()
        pending = _Pending(answer, start_s + timeout_s, head, payload, placement)
        self._pending[number] = pending
        self._unsent[number] = pending
        self._set_alarm(pending.deadline_s)
        try:
            self._send_waiting()
            reply = await answer
        except TimeoutError:
            if received == self._received:
                self._give_up(BackendError, "the server stopped answering")
            raise BackendError(
                f"origin {self._address}: no answer within {timeout_s:g} s"
            ) from None
        except asyncio.CancelledError:
            if received == self._received and self._loop.time() - start_s >= _SILENT_S:
                self._give_up(BackendError, "the server stopped answering")
            raise
        finally:
            # Whatever still comes of the reply is thrown away, never put where it was to go.
            del self._pending[number]
            self._unsent.pop(number, None)
            self._parser.divert(number)
            if answer.done() and not answer.cancelled():
                answer.exception()  # seen: a caller cancelled at this moment leaves it behind
        if isinstance(reply, expected):
            return reply
        raise self._no_answer(message, reply)

    def tell(self, message: Message) -> None:
        """Send a request whose reply nobody waits for; on a lost connection do nothing."""
        if not self.is_lost:
            self._transport.write(encode(message, next(self._numbers)))

    async def close(self, kind: type[KvtierError], why: str) -> None:
        """End the connection; what is in flight raises ``kind``."""
        self._give_up(kind, why)
        await self._closed.wait()

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the parser knows better
        return self._parser.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._received += 1
        try:
            self._parser.buffer_updated(nbytes)
        except ProtocolError as error:
            self._give_up(BackendError, hint(f"the answer makes no sense: {error}"))

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        self._send_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        why = losing(exc)
        if exc is None and self.welcome is None:
            here = self._address
            more = never_welcomed(
                tls=here.tls is not None, shows_certificate=here.shows_certificate
            )
            why = f"{why}: {more}"
        self._fail(BackendError, why)
        self._closed.set()

    # What the parser calls.

    def place_payload(self, frame: Frame) -> list[memoryview] | None:
        pending = self._pending.get(frame.request)
        if pending is None or pending.answer.done():
            return None
        reply = decode(frame)
        if not isinstance(reply, ReadReply) or pending.placement is None:
            raise ProtocolError(f"a {frame.kind.name} brings a payload that nobody asked for")
        pending.reply = reply
        return pending.placement.place(reply.status, frame.payload_bytes)

    def take_frame(self, frame: Frame) -> None:
        pending = self._pending.get(frame.request)
        if pending is None or pending.answer.done():
            self._take_unasked(frame)
            return
        reply = pending.reply or decode(frame)
        if isinstance(reply, ReadReply) and pending.placement is not None:
            if pending.reply is None:
                pending.placement.place(reply.status, 0)
            pending.placement.finish()
        pending.answer.set_result(reply)

    def _take_unasked(self, frame: Frame) -> None:
        """An answer that nobody waits for any more, or a word about the connection itself."""
        if frame.request != 0:
            return
        message = decode(frame)
        if isinstance(message, Failure):
            self._give_up(BackendError, message.text)

    def _send_waiting(self) -> None:
        """Send what waits for the transport, as far as it takes more."""
        while self._unsent and self._is_writable and not self.is_lost:
            _, pending = self._unsent.popitem(last=False)
            if pending.answer.done():  # its caller has left
                continue
            self._transport.write(pending.head)
            payload, pending.payload = pending.payload, None
            if payload is not None:
                # A copy: the transport may hold it when a cancelled caller already reuses it.
                self._transport.write(payload if isinstance(payload, bytes) else payload.tobytes())

    def _set_alarm(self, deadline_s: float) -> None:
        """Ring at ``deadline_s`` or before: a timer for each request would cost more."""
        if self._alarm_s <= deadline_s:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._alarm_s = self._loop.call_at(deadline_s, self._ring), deadline_s

    def _ring(self) -> None:
        """End the requests that are over their deadlines, and wait for the next deadline."""
        self._alarm, self._alarm_s = None, math.inf
        now_s = self._loop.time()
        for pending in self._pending.values():
            if pending.answer.done():
                continue
            if pending.deadline_s <= now_s:
                pending.answer.set_exception(TimeoutError())
            else:
                self._set_alarm(pending.deadline_s)

    def _no_answer(self, message: Message, reply: Message) -> KvtierError:
        """What to raise for a reply that is not the expected one."""
        if isinstance(reply, Failure):
            text = f"origin {self._address}: {reply.text}"
            return LimitError(text) if reply.code == ErrorCode.LIMIT else BackendError(text)
        text = f"a {type(message).__name__} was answered by a {type(reply).__name__}"
        self._give_up(BackendError, text)
        return BackendError(f"origin {self._address}: {text}")

    def _give_up(self, kind: type[KvtierError], why: str) -> None:
        self._fail(kind, why)
        self._transport.abort()

    def _fail(self, kind: type[KvtierError], why: str) -> None:
        """End every request in flight."""
        self.is_lost = True
        self._unsent.clear()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_exception(kind(f"origin {self._address}: {why}"))


def _size_of(payload: U8 | bytes | None) -> int:
    if payload is None:
        return 0
    return len(payload) if isinstance(payload, bytes) else payload.nbytes


async def connect(address: Address, page_bytes: int, timeout_s: float) -> Connection:
    """Connect to a server and agree with it.

    Raises:
        BackendError: nobody listens there, it does not answer in time, refuses, or serves pages
            of another size.
    """
    loop = asyncio.get_running_loop()
    tls: dict[str, Any] = {}
    if address.tls is not None:
        tls = {"ssl": address.tls, "server_hostname": address.server_name}
    try:
        async with asyncio.timeout(timeout_s):
            _, connection = await loop.create_connection(
                lambda: Connection(address), address.host, address.port, **tls
            )
    except (OSError, TimeoutError) as error:
        raise BackendError(f"origin {address}: {connecting(error, timeout_s)}") from error
    try:
        hello = Hello(address.token.encode())
        connection.welcome = await connection.ask(hello, Welcome, timeout_s)
        _check_welcome(connection.welcome, address, page_bytes)
    except BaseException:
        await connection.close(BackendError, "it could not be opened")
        raise
    return connection


def _check_welcome(welcome: Welcome, address: Address, page_bytes: int) -> None:
    if welcome.page_bytes != page_bytes:
        raise BackendError(
            f"origin {address}: it serves pages of {welcome.page_bytes} bytes, not {page_bytes}: "
            f"set page_bytes to {welcome.page_bytes}"
        )
    if welcome.capability.api_version != API_VERSION:
        raise BackendError(
            f"origin {address}: its backend interface is version "
            f"{welcome.capability.api_version}, here {API_VERSION}: install versions that fit"
        )
    if not (welcome.items_max and welcome.payload_bytes_max >= page_bytes):
        raise BackendError(f"origin {address}: its limits let no request through")
