"""Frames that are nearly right: a parser takes them or refuses them, and does nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from kvtier.backend import Capability, ExtentBatch, ObjectStats, PutResult
from kvtier.errors import ProtocolError
from kvtier.pages import PageStatus
from kvtier.wire.codec import decode, encode
from kvtier.wire.frames import Frame, FrameLimits, FrameParser
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

LIMITS: Final = FrameLimits(body_bytes_max=1 << 16, payload_bytes_max=1 << 16)
"""So low that a frame which passes them costs little."""

INPUT_BYTES_MAX: Final = 1024

_PAGE_BYTES: Final = 64  # of the fuzzer alone, for short payloads
_EDGES: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
_NEAR_LIMITS: Final = tuple(LIMITS.body_bytes_max + step for step in (-1, 0, 1))


def valid_frames() -> tuple[bytes, ...]:
    """One frame of every kind, with its payload."""
    keys, one = (b"a", b"key" * 9), np.array([1, 2], np.uint32)
    versions = np.array([1, (1 << 64) - 1], np.uint64)
    status = np.array([PageStatus.OK, PageStatus.ABSENT], np.uint8)
    batch = ExtentBatch(keys, versions, one - 1, one * 7, one, one)
    stats = ObjectStats(np.array([-1, 5], np.int64), versions)
    messages: tuple[tuple[Message, int], ...] = (
        (Hello(b"token"), 0),
        (Welcome(_PAGE_BYTES, 1 << 20, Capability(), 4096), 0),
        (Stat(keys), 0),
        (StatReply(stats), 0),
        (Read(batch), 0),
        (ReadReply(status), 1),
        (Put(keys, one), 3),
        (PutReply(PutResult(status, versions)), 0),
        (PutPart(7, b"key", 9, 2), 2),
        (PutPartReply(PageStatus.OK, 3), 0),
        (Abandon(7), 0),
        (AbandonReply(), 0),
        (Delete(keys), 0),
        (DeleteReply(status), 0),
        (Keys(0), 0),
        (KeysReply(5, keys), 0),
        (Failure(ErrorCode.LIMIT, "too large"), 0),
    )
    return tuple(
        encode(message, number, pages * _PAGE_BYTES) + bytes(pages * _PAGE_BYTES)
        for number, (message, pages) in enumerate(messages)
    )


def mutated(rng: random.Random, frames: Sequence[bytes]) -> bytes:
    """Some frames in a row with some damage, :data:`INPUT_BYTES_MAX` at most.

    Args:
        rng: decides everything.
        frames: what is damaged; :func:`valid_frames`, or what was found since.
    """
    data = bytearray(b"".join(rng.choices(frames, k=rng.randint(1, 3))))
    for _ in range(rng.randint(0, 4)):
        rng.choice(_DAMAGES)(rng, data)
    return bytes(data[:INPUT_BYTES_MAX])


def parse(data: bytes) -> int:
    """Parse and decode ``data`` as a connection would, in pieces that it itself decides.

    Returns:
        Frames that came whole and made sense.

    Raises:
        Exception: any but :class:`ProtocolError`; which is a defect.
    """
    receiver = _Receiver()
    # A short head, so that bodies and payloads go every way that there is.
    parser = FrameParser(receiver, LIMITS, head_bytes=64)
    step = 8 + 8 * (data[-1] if data else 0)
    try:
        for start in range(0, len(data), step):
            parser.feed(data[start : start + step])
    except ProtocolError:
        pass
    return receiver.frames


class _Receiver:
    def __init__(self) -> None:
        self.frames = 0

    def place_payload(self, frame: Frame) -> list[memoryview] | None:
        if frame.request % 3 == 0:
            return None
        half = frame.payload_bytes // 2
        whole = memoryview(bytearray(frame.payload_bytes))
        return [whole[:half], whole[half:]]

    def take_frame(self, frame: Frame) -> None:
        decode(frame)
        self.frames += 1


def _flip(rng: random.Random, data: bytearray) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_number(rng: random.Random, data: bytearray) -> None:
    """A number of some width is one of those at which things break."""
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice((*_EDGES, *_NEAR_LIMITS, rng.getrandbits(64))) % (1 << 8 * width)
    # Numbers lie at even places, counts most often right behind the header.
    at = rng.choice((16, 24, 32, 36, 40, rng.randrange(len(data) + 1) & ~1))
    if at + width <= len(data):
        data[at : at + width] = value.to_bytes(width, "little")


def _cut(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.randint(1, 64)]


def _insert(rng: random.Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randint(1, 64))


def _repeat(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = data[start : start + rng.randint(1, 256)]


def _truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data) + 1) :]


_DAMAGES: Final[Sequence[Callable[[random.Random, bytearray], None]]] = (
    _flip,
    _set_number,
    _set_number,
    _cut,
    _insert,
    _repeat,
    _truncate,
)
