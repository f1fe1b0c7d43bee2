from __future__ import annotations

import contextlib
import dataclasses
import struct
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from kvtier.backend import Capability, ExtentBatch, ObjectStats, PutResult
from kvtier.errors import ProtocolError
from kvtier.pages import PageStatus
from kvtier.wire.codec import KEY_BYTES_MAX, KEYS_MAX, decode, encode
from kvtier.wire.frames import HEADER_BYTES, Frame, FrameLimits, FrameParser, Kind
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

LIMITS = FrameLimits(body_bytes_max=1 << 16, payload_bytes_max=1 << 16)
U32_MAX, U64_MAX = (1 << 32) - 1, (1 << 64) - 1


class Receiver:
    """Takes frames and their payloads, in buffers of the given lengths; None takes no payload."""

    def __init__(self, segments: Iterable[int] | None = (), takes: bool = True) -> None:
        self.frames: list[Frame] = []
        self.payloads: list[bytes] = []
        self._segments = segments or ()
        self._takes = takes

    def place_payload(self, frame: Frame) -> list[memoryview] | None:
        if not self._takes:
            return None
        self.buffers = []
        left = frame.payload_bytes
        for length in [*self._segments, left]:
            self.buffers.append(bytearray(min(length, left)))
            left -= min(length, left)
        return [memoryview(buffer) for buffer in self.buffers]

    def take_frame(self, frame: Frame) -> None:
        self.frames.append(frame)
        if self._takes and frame.payload_bytes:
            self.payloads.append(b"".join(self.buffers))


def parse(data: bytes, limits: FrameLimits = LIMITS) -> list[Frame]:
    receiver = Receiver()
    FrameParser(receiver, limits).feed(data)
    return receiver.frames


def feed_in_pieces(parser: FrameParser, data: bytes, cuts: Iterable[int]) -> None:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, stop in pairwise(places):
        parser.feed(data[start:stop])


def as_plain(value: Any) -> Any:
    """A message as tuples and lists, so that arrays compare."""
    if dataclasses.is_dataclass(value):
        return (
            type(value).__name__,
            [as_plain(getattr(value, field.name)) for field in dataclasses.fields(value)],
        )
    return (value.dtype.str, value.tolist()) if isinstance(value, np.ndarray) else value


def arrays(dtype: str, count: int, most: int) -> st.SearchStrategy[Any]:
    elements = st.integers(0, most)
    return npst.arrays(np.dtype(dtype), count, elements=elements)


key_tuples = st.lists(st.binary(min_size=1, max_size=40), max_size=6).map(tuple)
statuses = st.integers(0, 9).flatmap(lambda count: arrays("u1", count, 3))
u32, u64 = st.integers(0, U32_MAX), st.integers(0, U64_MAX)


@st.composite
def reads(draw: st.DrawFn) -> Read:
    keys = draw(key_tuples)
    count = draw(st.integers(0, 8)) if keys else 0
    page_count = draw(arrays("u4", count, 1000))
    return Read(
        ExtentBatch(
            keys=keys,
            versions=draw(arrays("u8", len(keys), U64_MAX)),
            key_index=draw(arrays("u4", count, max(len(keys) - 1, 0))),
            first_page=draw(arrays("u4", count, U32_MAX)),
            page_count=page_count,
            row=(np.cumsum(page_count) - page_count).astype(np.uint32),
        )
    )


@st.composite
def stat_replies(draw: st.DrawFn) -> StatReply:
    count = draw(st.integers(0, 9))
    pages = draw(npst.arrays(np.int64, count))
    return StatReply(ObjectStats(pages, draw(arrays("u8", count, U64_MAX))))


@st.composite
def puts(draw: st.DrawFn) -> Put:
    keys = draw(key_tuples)
    return Put(keys, draw(arrays("u4", len(keys), U32_MAX)))


@st.composite
def put_replies(draw: st.DrawFn) -> PutReply:
    status = draw(statuses)
    return PutReply(PutResult(status, draw(arrays("u8", len(status), U64_MAX))))


capabilities = st.builds(
    Capability,
    u32,
    *[st.booleans()] * 4,
    *[u64] * 4,
)
lines = st.text(st.characters(codec="utf-8"), max_size=80).map(lambda text: " ".join(text.split()))
messages = st.one_of(
    st.builds(Hello, st.binary(max_size=60)),
    st.builds(Welcome, u64, u64, capabilities, u64),
    st.builds(Stat, key_tuples),
    stat_replies(),
    reads(),
    st.builds(ReadReply, statuses),
    puts(),
    put_replies(),
    st.builds(PutPart, u64, st.binary(min_size=1, max_size=40), u32, u32),
    st.builds(PutPartReply, st.sampled_from(PageStatus), u64),
    st.builds(Abandon, u64),
    st.just(AbandonReply()),
    st.builds(Delete, key_tuples),
    st.builds(DeleteReply, statuses),
    st.builds(Keys, u64),
    st.builds(KeysReply, u64, key_tuples),
    st.builds(Failure, st.sampled_from(ErrorCode), lines),
)


class TestRoundTrip:
    @settings(deadline=None, max_examples=300)
    @given(st.lists(st.tuples(messages, u64), max_size=4), st.lists(st.integers(0, 800)))
    def test_messages_come_back_however_the_bytes_are_cut(
        self, sent: list[tuple[Message, int]], cuts: list[int]
    ) -> None:
        receiver = Receiver()
        data = b"".join(encode(message, number) for message, number in sent)
        feed_in_pieces(FrameParser(receiver, LIMITS, head_bytes=64), data, cuts)
        got = [(as_plain(decode(frame)), frame.request) for frame in receiver.frames]
        assert got == [(as_plain(message), number) for message, number in sent]

    @settings(deadline=None, max_examples=200)
    @given(
        st.lists(st.binary(min_size=1, max_size=500), min_size=1, max_size=3),
        st.lists(st.integers(0, 100), max_size=5),
        st.lists(st.integers(0, 1500)),
        st.sampled_from([32, 50, 4096]),
    )
    def test_payloads_land_where_they_were_placed(
        self, payloads: list[bytes], segments: list[int], cuts: list[int], head_bytes: int
    ) -> None:
        receiver = Receiver(segments)
        reply = ReadReply(np.zeros(3, np.uint8))
        data = b"".join(encode(reply, 1, len(payload)) + payload for payload in payloads)
        feed_in_pieces(FrameParser(receiver, LIMITS, head_bytes), data, cuts)
        assert receiver.payloads == payloads

    def test_an_unwanted_payload_is_thrown_away(self) -> None:
        receiver = Receiver(takes=False)
        reply = encode(ReadReply(np.zeros(0, np.uint8)), 1, 5000) + bytes(5000)
        FrameParser(receiver, LIMITS, head_bytes=64).feed(reply + encode(Keys(7), 2))
        assert [frame.request for frame in receiver.frames] == [1, 2]

    def test_a_diverted_payload_is_not_written_any_further(self) -> None:
        receiver = Receiver()
        parser = FrameParser(receiver, LIMITS, head_bytes=64)
        parser.feed(encode(ReadReply(np.zeros(0, np.uint8)), 1, 1000) + b"x" * 400)
        parser.divert(2)
        parser.feed(b"y" * 100)
        parser.divert(1)
        parser.feed(b"z" * 500 + encode(Keys(7), 2))
        assert receiver.payloads[0] == b"x" * 400 + b"y" * 100 + bytes(500)
        assert [frame.request for frame in receiver.frames] == [1, 2]

    def test_large_bodies_are_received_apart(self) -> None:
        message = Stat(tuple(b"%0500d" % index for index in range(100)))
        receiver = Receiver()
        parser = FrameParser(receiver, LIMITS, head_bytes=64)
        feed_in_pieces(parser, encode(message, 1) * 2, range(0, 110_000, 777))
        assert [decode(frame) for frame in receiver.frames] == [message, message]

    def test_the_text_of_a_failure_is_one_bounded_line(self) -> None:
        (frame,) = parse(encode(Failure(ErrorCode.BACKEND, "a\nb\t" + "é" * 5000), 1))
        failure = decode(frame)
        assert isinstance(failure, Failure)
        assert failure.text.startswith("a b é")
        assert len(failure.text) < 1100


class TestFormat:
    def test_a_stat_has_these_bytes(self) -> None:
        expected = (
            "4b565452" "01" "03" "0000" "0500000000000000" "0f00000000000000" "0000000000000000"
            "0200000000000000" "0100" "0200" "61" "6263"
        )  # fmt: skip
        assert encode(Stat((b"a", b"bc")), 5).hex() == expected

    def test_a_read_has_these_bytes(self) -> None:
        one = np.array([1], np.uint32)
        batch = ExtentBatch((b"k",), np.array([9], np.uint64), one * 0, one * 7, one * 2, one * 0)
        expected = (
            "01000000" "01000000" "0900000000000000" "00000000" "07000000" "02000000" "0100" "6b"
        )  # fmt: skip
        assert encode(Read(batch), 1)[HEADER_BYTES:].hex() == expected

    def test_a_part_has_these_bytes(self) -> None:
        expected = "0700000000000000030000000200000001006b"
        assert encode(PutPart(7, b"k", 3, 2), 1)[HEADER_BYTES:].hex() == expected

    def test_arrays_are_views(self) -> None:
        (frame,) = parse(encode(ReadReply(np.ones(9, np.uint8)), 1))
        reply = decode(frame)
        assert isinstance(reply, ReadReply)
        assert not reply.status.flags.owndata

    def test_rows_of_a_read_follow_the_order_of_its_extents(self) -> None:
        counts = np.array([3, 1, 2], np.uint32)
        zeros = np.zeros(3, np.uint32)
        batch = ExtentBatch((b"k",), np.ones(1, np.uint64), zeros, zeros, counts, counts * 100)
        (frame,) = parse(encode(Read(batch), 1))
        message = decode(frame)
        assert isinstance(message, Read)
        assert message.batch.row.tolist() == [0, 3, 4]


def header(
    magic: bytes = b"KVTR",
    version: int = 1,
    kind: int = Kind.KEYS,
    flags: int = 0,
    body_bytes: int = 0,
    payload_bytes: int = 0,
) -> bytes:
    return struct.pack("<4sBBHQQQ", magic, version, kind, flags, 1, body_bytes, payload_bytes)


class TestRefusal:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (header(magic=b"HTTP"), "does not speak kvtier"),
            (header(version=2), "version 2"),
            (header(kind=0), "kind 0"),
            (header(kind=13), "kind 13"),
            (header(kind=255), "kind 255"),
            (header(flags=1), "flags 0x1"),
            (header(body_bytes=LIMITS.body_bytes_max + 1), "body of 65537 bytes is over the limit"),
            (header(body_bytes=U64_MAX), "over the limit"),
            (header(kind=Kind.PUT, payload_bytes=LIMITS.payload_bytes_max + 1), "over the limit"),
            (header(kind=Kind.PUT_PART, payload_bytes=U64_MAX), "over the limit"),
            (header(kind=Kind.ABANDON, payload_bytes=1), "payload of 1 bytes in a ABANDON"),
            (header(kind=Kind.READ_REPLY, payload_bytes=U64_MAX), "over the limit"),
            (header(kind=Kind.READ, payload_bytes=1), "payload of 1 bytes in a READ"),
        ],
    )
    def test_a_wrong_header_is_refused(self, data: bytes, message: str) -> None:
        with pytest.raises(ProtocolError, match=message):
            parse(data)

    @pytest.mark.parametrize(
        ("kind", "body", "message"),
        [
            (Kind.KEYS, b"", "ends after 0 bytes, 8 are needed"),
            (Kind.KEYS, bytes(9), "has 9 bytes, 8 are needed"),
            (Kind.STAT, struct.pack("<Q", KEYS_MAX), "ends after"),
            (Kind.STAT, struct.pack("<Q", U64_MAX), "65536 are possible"),
            (Kind.STAT, struct.pack("<QHH", 2, 1, 9) + b"abc", "ends after"),
            (Kind.STAT, struct.pack("<QH", 1, 0), "empty or longer"),
            (Kind.STAT, struct.pack("<QH", 1, KEY_BYTES_MAX + 1) + bytes(3000), "empty or longer"),
            (Kind.READ_REPLY, struct.pack("<QB", 1, 4), "status of 4"),
            (Kind.READ, struct.pack("<IIIII", 0, 1, 0, 0, 1), "names key 0 of 0"),
            (Kind.READ, struct.pack("<II3I3I3I", 0, 3, *[0] * 6, *[U32_MAX] * 3), "names key"),
            (
                Kind.READ,
                struct.pack("<IIQ2I2I2IH", 1, 2, 1, 0, 0, 0, 0, U32_MAX, 1, 1) + b"k",
                "asks for 4294967296 pages",
            ),
            (Kind.PUT_PART, struct.pack("<QIIH", 1, 2, 0, 0), "empty or longer"),
            (Kind.PUT_PART, struct.pack("<QIIH", 1, 2, 0, 1), "ends after"),
            (Kind.PUT_PART_REPLY, struct.pack("<QB", 1, 4), "status of 4"),
            (Kind.ABANDON_REPLY, b"a", "has 1 bytes, 0 are needed"),
            (Kind.ERROR, struct.pack("<Q", 99), "unknown code 99"),
            (Kind.WELCOME, bytes(63), "ends after 63 bytes"),
        ],
    )
    def test_a_wrong_body_is_refused(self, kind: Kind, body: bytes, message: str) -> None:
        with pytest.raises(ProtocolError, match=message):
            decode(Frame(kind, 1, body, 0))

    @settings(deadline=None, max_examples=300)
    @given(st.binary(max_size=300), st.lists(st.integers(0, 300)))
    def test_arbitrary_bytes_are_frames_or_refused(self, data: bytes, cuts: list[int]) -> None:
        _parse_and_decode(data, cuts)

    @settings(deadline=None, max_examples=300)
    @given(st.sampled_from(Kind), st.binary(max_size=200))
    def test_arbitrary_bodies_are_messages_or_refused(self, kind: Kind, body: bytes) -> None:
        with contextlib.suppress(ProtocolError):
            decode(Frame(kind, 1, body, 0))

    @settings(deadline=None, max_examples=300)
    @given(
        st.lists(messages, min_size=1, max_size=3),
        st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
        st.integers(0, 40),
    )
    def test_damaged_frames_are_frames_or_refused(
        self, sent: list[Message], damage: list[tuple[int, int]], lost: int
    ) -> None:
        data = bytearray(b"".join(encode(message, 1) for message in sent))
        for place, byte in damage:
            data[place % len(data)] = byte
        _parse_and_decode(bytes(data[: len(data) - lost]), [])


def _parse_and_decode(data: bytes, cuts: list[int]) -> None:
    receiver = Receiver()
    with contextlib.suppress(ProtocolError):
        feed_in_pieces(FrameParser(receiver, LIMITS, head_bytes=64), data, cuts)
        for frame in receiver.frames:
            decode(frame)


def test_more_keys_than_may_travel_are_refused_before_one_is_made() -> None:
    """Two bytes of a frame for the length of a key, and some 40 of memory for the key."""

    def body(count: int) -> bytes:
        return struct.pack("<Q", count) + struct.pack("<H", 1) * count + b"k" * count

    most = decode(Frame(Kind.STAT, 1, body(KEYS_MAX), 0))
    assert isinstance(most, Stat)
    assert len(most.keys) == KEYS_MAX
    with pytest.raises(ProtocolError, match=f"has {KEYS_MAX + 1} keys, {KEYS_MAX} are possible"):
        decode(Frame(Kind.STAT, 1, body(KEYS_MAX + 1), 0))
