"""One client of a server: how it is let in, its frames, its deadlines, and how it is hung up on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, cast

import numpy as np

from kvtier.backend import Backend, ExtentBatch
from kvtier.errors import ProtocolError
from kvtier.pages import U8
from kvtier.server.answers import Answers, Buffers
from kvtier.server.direct import DirectReads, locate_of
from kvtier.server.export import Export
from kvtier.server.pace import Pace
from kvtier.server.refusals import Reason
from kvtier.server.tenants import tenant_view
from kvtier.server.uploads import Uploads
from kvtier.server.work import Work
from kvtier.wire.codec import decode, encode
from kvtier.wire.frames import Frame, FrameLimits, FrameParser
from kvtier.wire.messages import ErrorCode, Failure, Hello, Message, Welcome

_STRANGER: Final = FrameLimits(body_bytes_max=4096, payload_bytes_max=0)
"""What a connection may send before its HELLO was accepted."""

_TLS_HANDSHAKE: Final = b"\x16\x03"
"""Begins the first record of a peer that speaks TLS (RFC 8446, 5.1)."""

_IGNORED: Final = memoryview(bytearray(1 << 16))
"""Takes what is received of peers that were hung up on; nobody reads it."""

_CODES: Final = {
    Reason.TOKEN: ErrorCode.DENIED,
    Reason.SILENT: ErrorCode.DENIED,
    Reason.PROTOCOL: ErrorCode.PROTOCOL,
}


def peer_name(address: object) -> str:
    """A peer's address for the log."""
    match address:
        case (str(host), int(port), *_):
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "a peer that left"


class Connection(asyncio.BufferedProtocol):
    """Takes frames off the transport, and gives requests to :class:`Work`."""

    def __init__(self, export: Export) -> None:
        self._export = export
        self._limits = export.limits
        self._parser = FrameParser(self, _STRANGER)
        self._work: Work | None = None  # once the HELLO was accepted
        self._uploads: Uploads | None = None  # from then on, too
        self._direct: DirectReads | None = None  # where the store and the transport allow it
        self._checked_ns = export.clock.now_ns()
        self._pace = Pace(self._checked_ns)
        self._payload: U8 | None = None  # of the PUT that is arriving
        self._reading = True
        self._finishing = False  # no more requests are taken
        self._hung_up = False  # the last word was said
        self._closing: asyncio.TimerHandle | None = None
        self._closed = asyncio.Event()

    @property
    def running(self) -> int:
        """Requests being worked on."""
        return self._work.running if self._work is not None else 0

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._peer = peer_name(transport.get_extra_info("peername"))
        export = self._export
        export.counters.accepted += 1
        export.connections[self] = None
        export.strangers[self] = None
        if len(export.connections) > self._limits.connections_max:
            self.refuse(Reason.FULL, "the server has all the connections that it may have")
        elif len(export.strangers) > self._limits.strangers_max:
            oldest = next(iter(export.strangers))
            oldest.refuse(Reason.FULL, "too many clients come in at once")

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the parser knows better
        return _IGNORED if self._hung_up else self._parser.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._hung_up:
            return
        self._export.counters.received_bytes += nbytes
        if not self._pace.is_stranger:
            self._pace.quiet_ns = self._export.clock.now_ns()
        if self._direct is not None:
            self._direct.begin_turn()
        try:
            self._parser.buffer_updated(nbytes)
        except ProtocolError as error:
            self.refuse(Reason.PROTOCOL, _with_hint(error))
            return
        if not self._parser.is_amid_frame:
            self._pace.frame_ns = None
        elif self._pace.frame_ns is None:
            self._pace.frame_ns = self._export.clock.now_ns()

    def pause_writing(self) -> None:
        self._pace.blocked_ns = self._export.clock.now_ns()
        if self._work is not None:
            self._work.writable.clear()

    def resume_writing(self) -> None:
        self._pace.blocked_ns = None
        if self._work is not None:
            self._work.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - all are an end
        if self._closing is not None:
            self._closing.cancel()
        for those in (self._export.connections, self._export.strangers, self._export.leaving):
            those.pop(self, None)
        self._finishing = self._hung_up = True
        if self._work is not None:
            self._work.end()
        self._closed.set()

    # What the parser calls.

    def place_payload(self, frame: Frame) -> list[memoryview] | None:
        if self._finishing or self._work is None:
            return None
        # Memory that the system gives only as it is written to.
        self._payload = np.empty(frame.payload_bytes, np.uint8)
        self._work.expect(frame)
        return [self._payload.data]

    def take_frame(self, frame: Frame) -> None:
        self._pace.frame_ns = None
        payload, self._payload = self._payload, None
        if self._finishing:
            return
        message = decode(frame)
        if self._work is None:
            self._greet(frame.request, message)
        else:
            self._work.take(frame.request, message, payload, len(frame.body))

    # What the server calls.

    def check(self, now_ns: int) -> None:
        """End what takes too long."""
        if self._hung_up:
            return
        if self._work is not None and not self._work.idle.is_set():
            self._pace.quiet_ns = now_ns
        if not self._reading and self._pace.frame_ns is not None:
            self._pace.frame_ns = now_ns  # it is this side that does not let the frame end
        passed_ns, self._checked_ns = now_ns - self._checked_ns, now_ns
        if self._uploads is not None and self._is_awaited():
            self._uploads.check(passed_ns, self._limits.upload_timeout_s)
        overdue = self._pace.overdue(self._limits, now_ns)
        if overdue is not None:
            reason, text = overdue
            self.refuse(reason, text)
            if reason is Reason.NOT_READING:
                self._transport.abort()

    def refuse(self, reason: Reason, text: str) -> None:
        """Say why, and hang up; it is logged and counted."""
        if self._hung_up:
            return
        self._export.refusals.note(reason, self._peer, text)
        self._hang_up(Failure(_CODES.get(reason, ErrorCode.LIMIT), text))

    async def finish(self, grace_s: float) -> bool:
        """Answer what was received, say goodbye and close.

        Args:
            grace_s: how long that may take; then the connection is cut.

        Returns:
            Whether everything was answered.
        """
        self._finishing = True
        self._update_reading()
        is_answered = False
        try:
            async with asyncio.timeout(grace_s):
                if self._work is not None:
                    await self._work.idle.wait()
                is_answered = True
                self._hang_up(Failure(ErrorCode.CLOSING, "the server is ending"))
                await self._closed.wait()
        except TimeoutError:
            if not is_answered:
                text = "its requests took longer than the server had to end"
                self._export.refusals.note(Reason.DRAIN, self._peer, text)
            self._transport.abort()
            await self._closed.wait()
        return is_answered

    # The door.

    def _greet(self, number: int, message: Message) -> None:
        """Let a client in, or refuse it."""
        export, limits = self._export, self._limits
        if not isinstance(message, Hello):
            self.refuse(Reason.PROTOCOL, "the first frame must be a HELLO")
            return
        tenant = "" if export.tokens is None else export.tokens.tenant_of(message.token)
        if tenant is None:
            self._deny()
            return
        backend, page_bytes = tenant_view(export.backend, tenant), export.page_bytes
        capability = limits.capability(backend.capability, page_bytes)
        object_pages_max = capability.object_pages_max
        uploads = Uploads(backend, page_bytes, object_pages_max, limits.uploads_max, export.room)
        answers = Answers(backend, page_bytes, object_pages_max, uploads, limits, export.memory)
        self._uploads = uploads
        self._work = Work(
            export,
            answers,
            self._write,
            self._answer_read,
            self._refuse_request,
            self._update_reading,
        )
        self._direct = self._direct_reads(backend)
        export.strangers.pop(self, None)
        self._pace.is_stranger = False
        self._pace.quiet_ns = export.clock.now_ns()
        self._parser.limits = limits.frame
        welcome = Welcome(
            page_bytes, limits.frame.payload_bytes_max, capability, limits.batch_items_max
        )
        self._write([encode(welcome, number)])

    def _deny(self) -> None:
        """Answer a wrong token after a while; until then take nothing more."""
        self._finishing = True
        self._update_reading()
        self._closing = asyncio.get_running_loop().call_later(
            self._limits.denial_delay_s,
            self.refuse,
            Reason.TOKEN,
            "the token is missing or wrong",
        )

    def _direct_reads(self, backend: Backend) -> DirectReads | None:
        """What answers reads past the transport, if that would send the bytes as they are."""
        locate, connected = locate_of(backend), self._transport.get_extra_info("socket")
        is_secret = self._transport.get_extra_info("sslcontext") is not None
        if locate is None or connected is None or is_secret:
            return None
        export = self._export
        return DirectReads(
            connected.fileno(), locate, backend, export.page_bytes, self._limits, export.counters
        )

    def _refuse_request(self, text: str) -> None:
        self.refuse(Reason.PROTOCOL, text)

    def _is_awaited(self) -> bool:
        """It is the peer's turn: neither a frame of it nor an answer to it is on its way."""
        return self._reading and self._pace.frame_ns is None and self._pace.blocked_ns is None

    # Bytes.

    def _write(self, buffers: Buffers) -> None:
        if self._hung_up or self._transport.is_closing():
            return
        for buffer in buffers:
            self._transport.write(buffer)
            self._export.counters.sent_bytes += len(buffer)

    def _answer_read(self, number: int, batch: ExtentBatch, payload_bytes: int) -> int | None:
        """Answer a read past the transport, if that has nothing to send."""
        if self._direct is None or self._hung_up or self._transport.is_closing():
            return None
        if self._transport.get_write_buffer_size():
            return None
        rest = self._direct.answer(number, batch, payload_bytes)
        if rest is None:
            return None
        if len(rest):
            self._write([rest.data])
        return len(rest)

    def _update_reading(self) -> None:
        """Read while there is room for what comes; of a peer that was hung up on, to the end."""
        has_room = self._work is None or self._work.has_room
        reading = self._hung_up or (has_room and not self._finishing)
        if reading == self._reading or self._transport.is_closing():
            return
        self._reading = reading
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _hang_up(self, last: Failure) -> None:
        """Say the last word, and close once the peer had time to read it.

        To close at once, with bytes of the peer unread, would reset the connection (RFC 1122,
        4.2.2.13) and take back what was sent and did not arrive yet.
        """
        if self._hung_up:
            return
        self._write([encode(last, 0)])
        self._finishing = self._hung_up = True
        if self._transport.is_closing():
            return
        self._leave()
        if self._transport.can_write_eof():
            with contextlib.suppress(OSError):  # it is gone already, which reading will tell
                self._transport.write_eof()
        self._update_reading()
        self._closing = asyncio.get_running_loop().call_later(self._limits.linger_s, self._let_go)

    def _leave(self) -> None:
        """Make room for others: those that leave have a bound of their own."""
        export = self._export
        export.connections.pop(self, None)
        export.strangers.pop(self, None)
        export.leaving[self] = None
        if len(export.leaving) > self._limits.connections_max:
            next(iter(export.leaving))._transport.abort()

    def _let_go(self) -> None:
        """Close; a peer that has not even read by ``write_timeout_s`` is cut."""
        self._transport.close()
        self._closing = asyncio.get_running_loop().call_later(
            self._limits.write_timeout_s, self._transport.abort
        )


def _with_hint(error: ProtocolError) -> str:
    text = str(error)
    if repr(_TLS_HANDSHAKE)[2:-1] in text and "does not speak kvtier" in text:
        return "the peer speaks TLS and this server does not: use tcp:// there, or serve with TLS"
    return text
