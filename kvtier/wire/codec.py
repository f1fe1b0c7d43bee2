"""How messages become bodies of frames, and back.

Batches travel as the struct of arrays that they are; decoding makes views of the body, and one
Python object per key, never one per page or extent. Decoding checks what the encoding needs in
order to be read at all; bounds of a store (:class:`kvtier.backend.Capability`) are checked by
whoever serves the request.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvtier.backend import Capability, ExtentBatch, ObjectStats, PutResult
from kvtier.errors import ProtocolError
from kvtier.extents import lay_out
from kvtier.pages import I64, U8, U32, U64, PageStatus
from kvtier.wire.frames import Frame, Kind, encode_frame
from kvtier.wire.messages import (
    Abandon,
    AbandonReply,
    Delete,
    DeleteReply,
    ErrorCode,
    Failure,
    Hello,
    Keys,
    KeysReply,
    Message,
    Put,
    PutPart,
    PutPartReply,
    PutReply,
    Read,
    ReadReply,
    Stat,
    StatReply,
    Welcome,
)

KEY_BYTES_MAX: Final = 2048
"""Longest key that can travel."""

ITEMS_MAX: Final = 4096
"""Most keys, extents or objects of one request: with the longest keys they fit a body."""

KEYS_MAX: Final = 1 << 16
"""Most keys of one message, whoever sends it: as objects, keys take many times the bytes that they
came in, and they are made before anybody can say that they are too many."""

_UINT8: Final = np.dtype("u1")
_UINT16: Final = np.dtype("<u2")
_UINT32: Final = np.dtype("<u4")
_UINT64: Final = np.dtype("<u8")
_INT64: Final = np.dtype("<i8")

_TEXT_BYTES_MAX: Final = 1024
_STATUS_MAX: Final = max(PageStatus)
_COUNT: Final = struct.Struct("<Q")
_COUNTS: Final = struct.Struct("<II")
_PART: Final = struct.Struct("<QII")
_WELCOME: Final = struct.Struct("<QIIQQQQQQ")
_WRITABLE, _LISTABLE, _PERSISTENT, _SHARED = 1, 2, 4, 8


def encode(message: Message, request: int, payload_bytes: int = 0) -> bytes:
    """Header and body of the frame that carries ``message``; its payload is written after it."""
    codec = _CODECS_BY_TYPE[type(message)]
    return encode_frame(codec.kind, request, codec.encode(message), payload_bytes)


def decode(frame: Frame) -> Message:
    """The message in ``frame``. Its arrays are views of the body.

    Raises:
        ProtocolError: the body is too short or too long, or contradicts itself.
    """
    codec = _CODECS_BY_KIND[frame.kind]
    body = _Body(frame)
    message = codec.decode(body)
    body.check_end()
    return message


class _Body:
    """Reads a body from front to back, never past its end."""

    def __init__(self, frame: Frame) -> None:
        self._kind = frame.kind
        self._body = frame.body
        self._at = 0

    def _take(self, size: int) -> int:
        """Position of the next ``size`` bytes."""
        at = self._at
        if size > len(self._body) - at:
            raise self.error(f"ends after {len(self._body)} bytes, {at + size} are needed")
        self._at = at + size
        return at

    def error(self, what: str) -> ProtocolError:
        return ProtocolError(f"the body of a {self._kind.name} {what}")

    def numbers(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack_from(self._body, self._take(layout.size))

    def array(self, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        at = self._take(count * dtype.itemsize)
        return np.frombuffer(self._body, dtype, count, at)

    def keys(self, count: int) -> tuple[bytes, ...]:
        if count > KEYS_MAX:
            raise self.error(f"has {count} keys, {KEYS_MAX} are possible")
        lengths: list[int] = self.array(_UINT16, count).tolist()
        if count and not 0 < min(lengths) <= max(lengths) <= KEY_BYTES_MAX:
            raise self.error(f"has a key that is empty or longer than {KEY_BYTES_MAX} bytes")
        at = self._take(sum(lengths))
        names = bytes(self._body[at : self._at])
        ends = accumulate(lengths)
        return tuple([names[end - length : end] for end, length in zip(ends, lengths, strict=True)])

    def statuses(self, count: int) -> U8:
        status: U8 = self.array(_UINT8, count)
        if np.count_nonzero(status) and int(status.max()) > _STATUS_MAX:
            raise self.error(f"has a status of {int(status.max())}")
        return status

    def rest(self) -> bytes:
        return bytes(self._body[self._take(len(self._body) - self._at) :])

    def check_end(self) -> None:
        if self._at != len(self._body):
            raise self.error(f"has {len(self._body)} bytes, {self._at} are needed")


def _pack_keys(keys: Sequence[bytes]) -> bytes:
    lengths = np.fromiter(map(len, keys), _UINT16, len(keys))
    return lengths.tobytes() + b"".join(keys)


def _encode_welcome(message: Welcome) -> bytes:
    can = message.capability
    flags = (
        _WRITABLE * can.writable
        | _LISTABLE * can.listable
        | _PERSISTENT * can.persistent
        | _SHARED * can.shared
    )
    return _WELCOME.pack(
        message.payload_bytes_max,
        can.api_version,
        flags,
        message.page_bytes,
        can.key_bytes_max,
        can.object_pages_max,
        can.extent_pages_max,
        can.batch_extents_max,
        message.items_max,
    )


def _decode_welcome(body: _Body) -> Welcome:
    (
        payload_bytes_max,
        version,
        flags,
        page_bytes,
        key_bytes,
        object_,
        extent,
        batch,
        items_max,
    ) = body.numbers(_WELCOME)
    capability = Capability(
        api_version=version,
        writable=bool(flags & _WRITABLE),
        listable=bool(flags & _LISTABLE),
        persistent=bool(flags & _PERSISTENT),
        shared=bool(flags & _SHARED),
        key_bytes_max=key_bytes,
        object_pages_max=object_,
        extent_pages_max=extent,
        batch_extents_max=batch,
    )
    return Welcome(page_bytes, payload_bytes_max, capability, items_max)


def _encode_some_keys(message: Stat | Delete) -> bytes:
    return _COUNT.pack(len(message.keys)) + _pack_keys(message.keys)


def _decode_some_keys(body: _Body) -> tuple[bytes, ...]:
    return body.keys(body.numbers(_COUNT)[0])


def _encode_stats(message: StatReply) -> bytes:
    stats = message.stats
    return b"".join(
        (
            _COUNT.pack(len(stats.pages)),
            stats.pages.astype(_INT64, copy=False).tobytes(),
            stats.versions.astype(_UINT64, copy=False).tobytes(),
        )
    )


def _decode_stats(body: _Body) -> StatReply:
    (count,) = body.numbers(_COUNT)
    pages: I64 = body.array(_INT64, count)
    versions: U64 = body.array(_UINT64, count)
    return StatReply(ObjectStats(pages, versions))


def _encode_read(message: Read) -> bytes:
    batch = message.batch
    return b"".join(
        (
            _COUNTS.pack(len(batch.keys), len(batch)),
            batch.versions.astype(_UINT64, copy=False).tobytes(),
            batch.key_index.astype(_UINT32, copy=False).tobytes(),
            batch.first_page.astype(_UINT32, copy=False).tobytes(),
            batch.page_count.astype(_UINT32, copy=False).tobytes(),
            _pack_keys(batch.keys),
        )
    )


def _decode_read(body: _Body) -> Read:
    """Rows are given in the order of the extents, as the payload of the reply has them."""
    key_count, count = body.numbers(_COUNTS)
    versions: U64 = body.array(_UINT64, key_count)
    key_index, first_page, page_count = body.array(_UINT32, 3 * count).reshape(3, count)
    keys = body.keys(key_count)
    rows = np.empty(count, np.uint32)
    key_last, pages = lay_out(key_index, page_count, rows)
    if key_last >= key_count:
        raise body.error(f"names key {key_last} of {key_count}")
    if pages >= 1 << 32:
        raise body.error(f"asks for {pages} pages")
    return Read(ExtentBatch(keys, versions, key_index, first_page, page_count, rows))


def _encode_put(message: Put) -> bytes:
    return b"".join(
        (
            _COUNT.pack(len(message.keys)),
            message.page_counts.astype(_UINT32, copy=False).tobytes(),
            _pack_keys(message.keys),
        )
    )


def _decode_put(body: _Body) -> Put:
    (count,) = body.numbers(_COUNT)
    page_counts: U32 = body.array(_UINT32, count)
    return Put(body.keys(count), page_counts)


def _encode_put_reply(message: PutReply) -> bytes:
    result = message.result
    return b"".join(
        (
            _COUNT.pack(len(result.status)),
            result.versions.astype(_UINT64, copy=False).tobytes(),
            result.status.tobytes(),
        )
    )


def _decode_put_reply(body: _Body) -> PutReply:
    (count,) = body.numbers(_COUNT)
    versions: U64 = body.array(_UINT64, count)
    return PutReply(PutResult(body.statuses(count), versions))


def _encode_put_part(message: PutPart) -> bytes:
    return _PART.pack(message.upload, message.page_count, message.first_page) + _pack_keys(
        (message.key,)
    )


def _decode_put_part(body: _Body) -> PutPart:
    upload, page_count, first_page = body.numbers(_PART)
    (key,) = body.keys(1)
    return PutPart(upload, key, page_count, first_page)


def _encode_put_part_reply(message: PutPartReply) -> bytes:
    return _COUNT.pack(message.version) + bytes((message.status,))


def _decode_put_part_reply(body: _Body) -> PutPartReply:
    (version,) = body.numbers(_COUNT)
    return PutPartReply(PageStatus(int(body.statuses(1)[0])), version)


def _encode_statuses(message: ReadReply | DeleteReply) -> bytes:
    return _COUNT.pack(len(message.status)) + message.status.tobytes()


def _decode_statuses(body: _Body) -> U8:
    return body.statuses(body.numbers(_COUNT)[0])


def _encode_listing(message: KeysReply) -> bytes:
    return _COUNT.pack(message.cursor) + _COUNT.pack(len(message.keys)) + _pack_keys(message.keys)


def _decode_listing(body: _Body) -> KeysReply:
    (cursor,) = body.numbers(_COUNT)
    return KeysReply(cursor, _decode_some_keys(body))


def _encode_failure(message: Failure) -> bytes:
    text = " ".join(message.text.split()).encode("utf-8", "replace")
    return _COUNT.pack(message.code) + text[:_TEXT_BYTES_MAX]


def _decode_failure(body: _Body) -> Failure:
    (number,) = body.numbers(_COUNT)
    text = body.rest().decode("utf-8", "replace")
    try:
        return Failure(ErrorCode(number), text)
    except ValueError:
        raise body.error(f"has the unknown code {number}") from None


@dataclass(frozen=True, slots=True)
class _Codec:
    kind: Kind
    encode: Callable[[Any], bytes]
    decode: Callable[[_Body], Message]


_CODECS_BY_TYPE: Final[dict[type, _Codec]] = {
    Hello: _Codec(Kind.HELLO, lambda m: m.token, lambda body: Hello(body.rest())),
    Welcome: _Codec(Kind.WELCOME, _encode_welcome, _decode_welcome),
    Stat: _Codec(Kind.STAT, _encode_some_keys, lambda body: Stat(_decode_some_keys(body))),
    StatReply: _Codec(Kind.STAT_REPLY, _encode_stats, _decode_stats),
    Read: _Codec(Kind.READ, _encode_read, _decode_read),
    ReadReply: _Codec(
        Kind.READ_REPLY, _encode_statuses, lambda body: ReadReply(_decode_statuses(body))
    ),
    Put: _Codec(Kind.PUT, _encode_put, _decode_put),
    PutReply: _Codec(Kind.PUT_REPLY, _encode_put_reply, _decode_put_reply),
    PutPart: _Codec(Kind.PUT_PART, _encode_put_part, _decode_put_part),
    PutPartReply: _Codec(Kind.PUT_PART_REPLY, _encode_put_part_reply, _decode_put_part_reply),
    Abandon: _Codec(
        Kind.ABANDON,
        lambda m: _COUNT.pack(m.upload),
        lambda body: Abandon(body.numbers(_COUNT)[0]),
    ),
    AbandonReply: _Codec(Kind.ABANDON_REPLY, lambda _: b"", lambda _: AbandonReply()),
    Delete: _Codec(Kind.DELETE, _encode_some_keys, lambda body: Delete(_decode_some_keys(body))),
    DeleteReply: _Codec(
        Kind.DELETE_REPLY, _encode_statuses, lambda body: DeleteReply(_decode_statuses(body))
    ),
    Keys: _Codec(
        Kind.KEYS, lambda m: _COUNT.pack(m.cursor), lambda body: Keys(body.numbers(_COUNT)[0])
    ),
    KeysReply: _Codec(Kind.KEYS_REPLY, _encode_listing, _decode_listing),
    Failure: _Codec(Kind.ERROR, _encode_failure, _decode_failure),
}
_CODECS_BY_KIND: Final = {codec.kind: codec for codec in _CODECS_BY_TYPE.values()}
