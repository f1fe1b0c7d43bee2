"""The messages of the protocol: one value per kind of frame."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from kvtier.backend import Capability, ExtentBatch, ObjectStats, PutResult
from kvtier.pages import U8, U32, PageStatus


class ErrorCode(IntEnum):
    """Why a request failed as a whole."""

    PROTOCOL = 1
    """It could not be understood; the server closes the connection."""
    DENIED = 2
    """The token is missing or wrong; the server closes the connection."""
    LIMIT = 3
    """It is larger than the capability allows."""
    BACKEND = 4
    """The store behind the server could not do it."""
    CLOSING = 5
    """The server ends: what it did not answer it did not begin; it closes the connection."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of a connection. ``token``: what the server asks of its clients."""

    token: bytes


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to :class:`Hello`.

    Attributes:
        page_bytes: bytes of a page.
        payload_bytes_max: longest payload of one frame.
        capability: of the store behind the server.
        items_max: most keys, extents or objects of one request.
    """

    page_bytes: int
    payload_bytes_max: int
    capability: Capability
    items_max: int


@dataclass(frozen=True, slots=True)
class Stat:
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, eq=False)
class StatReply:
    stats: ObjectStats


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """Extents to read; ``batch.row`` is not sent: the reply's payload has them in order."""

    batch: ExtentBatch


@dataclass(frozen=True, slots=True, eq=False)
class ReadReply:
    """u8[extents]; the payload holds the pages of the extents that are OK, in order."""

    status: U8


@dataclass(frozen=True, slots=True, eq=False)
class Put:
    """Whole objects to publish; the payload holds their pages, object after object."""

    keys: tuple[bytes, ...]
    page_counts: U32


@dataclass(frozen=True, slots=True, eq=False)
class PutReply:
    result: PutResult


@dataclass(frozen=True, slots=True)
class PutPart:
    """Some pages of an object that is larger than a frame; the payload holds them.

    The parts of an upload come in order, over one connection, from page 0 to the last, which
    publishes the object. No second part is sent before the first was answered.

    Attributes:
        upload: chosen by the client, never used twice on a connection.
        key: of the object.
        page_count: pages of the whole object.
        first_page: the first page of this part.
    """

    upload: int
    key: bytes
    page_count: int
    first_page: int


@dataclass(frozen=True, slots=True)
class PutPartReply:
    """What became of a part, and with the last part of the object.

    Attributes:
        status: OK, or FAILED: then the upload has failed whatever else is sent of it.
        version: of the published object; 0 before the last part, and where it failed.
    """

    status: PageStatus
    version: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """Forget an upload that is not complete; one that has ended, or never was, is no error."""

    upload: int


@dataclass(frozen=True, slots=True)
class AbandonReply:
    """Nothing is left of the upload."""


@dataclass(frozen=True, slots=True)
class Delete:
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, eq=False)
class DeleteReply:
    status: U8


@dataclass(frozen=True, slots=True)
class Keys:
    """The next keys of a listing. ``cursor``: 0 begins one, else as the last reply had it."""

    cursor: int


@dataclass(frozen=True, slots=True)
class KeysReply:
    """Some keys. ``cursor``: what asks for the next ones; 0 where these were the last."""

    cursor: int
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A request failed as a whole. ``text``: one line for a person."""

    code: ErrorCode
    text: str


Message: TypeAlias = (
    Hello
    | Welcome
    | Stat
    | StatReply
    | Read
    | ReadReply
    | Put
    | PutReply
    | PutPart
    | PutPartReply
    | Abandon
    | AbandonReply
    | Delete
    | DeleteReply
    | Keys
    | KeysReply
    | Failure
)
