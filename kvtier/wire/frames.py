"""Frames: a header, a body of arrays, a payload of pages. Little-endian.

The parser never reads a socket. It is asked where the next bytes shall go and told how many came,
the two calls of :class:`asyncio.BufferedProtocol`, so that a payload is received straight into
the buffer that its owner names.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from kvtier.errors import ProtocolError

MAGIC: Final = b"KVTR"
WIRE_VERSION: Final = 1  # no release speaks it yet: raised by changes from the first one on
_HEADER: Final = struct.Struct("<4sBBHQQQ")
HEADER_BYTES: Final = _HEADER.size
_HEAD_BYTES_DEFAULT: Final = 64 << 10


class Kind(enum.IntEnum):
    """What a frame is. Odd kinds go to the server; its answer is the kind after it."""

    HELLO = 1
    WELCOME = 2
    STAT = 3
    STAT_REPLY = 4
    READ = 5
    READ_REPLY = 6
    PUT = 7
    PUT_REPLY = 8
    DELETE = 9
    DELETE_REPLY = 10
    KEYS = 11
    KEYS_REPLY = 12
    ERROR = 14
    """The answer, instead of the expected one, to a request that failed as a whole."""
    PUT_PART = 15
    PUT_PART_REPLY = 16
    ABANDON = 17
    ABANDON_REPLY = 18

    __hash__ = int.__hash__  # an enum's own hashes the name, in Python


_KINDS: Final = {int(kind): kind for kind in Kind}
_WITH_PAYLOAD: Final = frozenset({Kind.READ_REPLY, Kind.PUT, Kind.PUT_PART})


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """Bounds that a frame is held against before anything is allocated for it.

    Attributes:
        body_bytes_max: longest body; clients cut their requests to fit the default.
        payload_bytes_max: longest payload.
    """

    body_bytes_max: int = 16 << 20
    payload_bytes_max: int = 64 << 20


class Frame(NamedTuple):
    """A frame without its payload.

    Attributes:
        kind: what it is.
        request: the number that ties a reply to its request; chosen by the client.
        body: the arrays; memory of the frame's own.
        payload_bytes: bytes of pages that follow the body.
    """

    kind: Kind
    request: int
    body: bytearray
    payload_bytes: int


class FrameReceiver(Protocol):
    """Who a parser works for."""

    def place_payload(self, frame: Frame) -> Iterable[memoryview] | None:
        """Buffers that take the payload of ``frame``, ``payload_bytes`` long together.

        None throws the payload away. Called before any of it is received.
        """
        ...

    def take_frame(self, frame: Frame) -> None:
        """A frame is complete, its payload in place."""
        ...


def encode_frame(kind: Kind, request: int, body: bytes, payload_bytes: int = 0) -> bytes:
    """Header and body of a frame; the payload is written after it."""
    head = _HEADER.pack(MAGIC, WIRE_VERSION, kind, 0, request, len(body), payload_bytes)
    return head + body


class _Header(NamedTuple):
    kind: Kind
    request: int
    body_bytes: int
    payload_bytes: int


class FrameParser:
    """Cuts what a peer sends into frames.

    Small things (headers, bodies, the beginning of a payload) come through one buffer, so that
    one read of the socket may bring many frames; the rest of a payload is received in place. A
    parser that raised :class:`ProtocolError` is to be thrown away with its connection.

    Attributes:
        limits: held against the frames to come; may be changed between frames, so that a peer
            is given little until it has proved who it is.
    """

    def __init__(
        self,
        receiver: FrameReceiver,
        limits: FrameLimits,
        head_bytes: int = _HEAD_BYTES_DEFAULT,
    ) -> None:
        self._receiver = receiver
        self.limits = limits
        self._head = memoryview(bytearray(max(head_bytes, HEADER_BYTES)))
        self._start = 0  # self._head[start:end] was received and is not parsed yet
        self._end = 0
        self._header: _Header | None = None  # of a frame whose body is not complete
        self._body = memoryview(b"")  # what is to be filled of a body too long for the head
        self._body_whole = bytearray()
        self._frame: Frame | None = None  # a frame whose payload is not complete
        self._payload: deque[memoryview] | None = None  # what is to be filled; None throws away
        self._payload_left = 0

    @property
    def is_amid_frame(self) -> bool:
        """Whether a part of a frame was received, and the rest is still to come."""
        return bool(self._payload_left or self._body or self._header or self._end)

    def get_buffer(self) -> memoryview:
        """Where the next received bytes belong; never empty."""
        if self._payload_left:
            if self._payload:
                return self._payload[0]
            return self._head[: min(self._payload_left, len(self._head))]
        if self._body:
            return self._body
        return self._head[self._end :]

    def buffer_updated(self, count: int) -> None:
        """``count`` bytes were received into what :meth:`get_buffer` returned.

        Raises:
            ProtocolError: they are no frame, or one beyond the limits.
        """
        if self._payload_left:
            self._payload_received(count)
        elif self._body:
            self._body = self._body[count:]
            if not self._body:
                assert self._header is not None
                self._body_received(self._header, self._body_whole)
                self._body_whole = bytearray()
        else:
            self._end += count
        while self._parse_step():
            pass
        self._compact()

    def feed(self, data: bytes) -> None:
        """Parse ``data``, copying it to where it belongs: for callers that hold bytes already."""
        rest = memoryview(data)
        while rest:
            buffer = self.get_buffer()
            count = min(len(buffer), len(rest))
            buffer[:count] = rest[:count]
            self.buffer_updated(count)
            rest = rest[count:]

    def divert(self, request: int) -> None:
        """Throw away what is still to come of this request's payload, if it is arriving now."""
        if self._frame is not None and self._frame.request == request:
            self._payload = None

    def _parse_step(self) -> bool:
        """Take one more part out of the head; False when it holds no further whole part."""
        if self._payload_left:
            return self._copy_payload()
        if self._body:
            return False
        if self._header is None:
            if self._end - self._start < HEADER_BYTES:
                return False
            self._header = self._read_header()
        return self._read_body(self._header)

    def _read_header(self) -> _Header:
        """Check a header against the format and the limits."""
        magic, version, code, flags, request, body_bytes, payload_bytes = _HEADER.unpack_from(
            self._head, self._start
        )
        self._start += HEADER_BYTES
        if magic != MAGIC:
            raise ProtocolError(f"a frame begins with {magic!r}: the peer does not speak kvtier")
        if version != WIRE_VERSION:
            raise ProtocolError(
                f"the peer speaks version {version} of the protocol, this side {WIRE_VERSION}: "
                "install versions of kvtier that fit"
            )
        kind = _KINDS.get(code)
        if kind is None or flags != 0:
            raise ProtocolError(f"a frame of kind {code} with flags {flags:#x} is unknown")
        limits = self.limits
        if body_bytes > limits.body_bytes_max:
            raise ProtocolError(
                f"a body of {body_bytes} bytes is over the limit of {limits.body_bytes_max}"
            )
        if payload_bytes:
            payload_bytes_max = limits.payload_bytes_max if kind in _WITH_PAYLOAD else 0
            if payload_bytes > payload_bytes_max:
                raise ProtocolError(
                    f"a payload of {payload_bytes} bytes in a {kind.name} is over the limit "
                    f"of {payload_bytes_max}"
                )
        return _Header(kind, request, body_bytes, payload_bytes)

    def _read_body(self, header: _Header) -> bool:
        """Take a body out of the head, or begin to receive it apart if it is too long."""
        have = self._end - self._start
        if have >= header.body_bytes:
            stop = self._start + header.body_bytes
            body = bytearray(self._head[self._start : stop])
            self._start = stop
            self._body_received(header, body)
            return True
        if header.body_bytes > len(self._head):
            self._body_whole = bytearray(header.body_bytes)
            self._body = memoryview(self._body_whole)
            self._body[:have] = self._head[self._start : self._end]
            self._body = self._body[have:]
            self._start = self._end
        return False

    def _body_received(self, header: _Header, body: bytearray) -> None:
        self._header = None
        frame = Frame(header.kind, header.request, body, header.payload_bytes)
        if frame.payload_bytes == 0:
            self._receiver.take_frame(frame)
            return
        self._frame = frame
        self._payload_left = frame.payload_bytes
        places = self._receiver.place_payload(frame)
        self._payload = None if places is None else deque(place for place in places if place)

    def _copy_payload(self) -> bool:
        """Move what the head holds of a payload to its place."""
        have = self._end - self._start
        while have and self._payload_left:
            count = min(have, self._payload_left)
            if self._payload:
                count = min(count, len(self._payload[0]))
                self._payload[0][:count] = self._head[self._start : self._start + count]
            self._start += count
            have -= count
            self._payload_received(count)
        return have > 0

    def _payload_received(self, count: int) -> None:
        self._payload_left -= count
        if self._payload:
            rest = self._payload[0][count:]
            if rest:
                self._payload[0] = rest
            else:
                self._payload.popleft()
        if self._payload_left == 0:
            assert self._frame is not None
            frame, self._frame, self._payload = self._frame, None, None
            self._receiver.take_frame(frame)

    def _compact(self) -> None:
        """Move an unparsed rest to the front, so that a whole small frame has room behind it."""
        have = self._end - self._start
        if self._start and have:
            self._head[:have] = self._head[self._start : self._end]
        self._start, self._end = 0, have
