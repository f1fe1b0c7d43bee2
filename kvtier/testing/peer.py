"""One end of a connection that says whatever a test wants it to, sense or nonsense."""

from __future__ import annotations

import asyncio
import contextlib

from kvtier.wire.codec import decode, encode
from kvtier.wire.frames import Frame, FrameLimits, FrameParser
from kvtier.wire.messages import Message


class Peer:
    """Speaks :mod:`kvtier.wire` over a pair of streams, as a client or as a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._parser = FrameParser(self, FrameLimits())
        self._received: list[tuple[int, Message, bytes]] = []
        self._payload = bytearray()

    @classmethod
    async def connect(cls, host: str, port: int) -> Peer:
        """A client of a server there; nothing is said yet."""
        return cls(*await asyncio.open_connection(host, port))

    def place_payload(self, frame: Frame) -> list[memoryview]:
        self._payload = bytearray(frame.payload_bytes)
        return [memoryview(self._payload)]

    def take_frame(self, frame: Frame) -> None:
        payload = bytes(self._payload) if frame.payload_bytes else b""
        self._received.append((frame.request, decode(frame), payload))

    def send(self, *messages: Message) -> None:
        """Send messages without payload, numbered from 1."""
        for number, message in enumerate(messages, 1):
            self.writer.write(encode(message, number))

    async def send_bytes(self, data: bytes) -> None:
        """Send anything, and wait until the other side takes it."""
        self.writer.write(data)
        await self.writer.drain()

    async def next(self) -> tuple[int, Message, bytes]:
        """The next frame: its request number, message and payload; EOFError at the end."""
        while not self._received:
            data = await self._reader.read(1 << 16)
            if not data:
                raise EOFError("the peer hung up")
            self._parser.feed(data)
        return self._received.pop(0)

    async def ask(self, message: Message, payload: bytes = b"") -> tuple[Message, bytes]:
        """Send one message; the message and payload of the next frame."""
        self.writer.write(encode(message, 1, len(payload)) + payload)
        return (await self.next())[1:]

    async def is_hung_up(self) -> bool:
        """Wait for the next frame, or the end; whether it was the end."""
        try:
            await self.next()
        except (EOFError, ConnectionError):
            return True
        return False

    async def close(self) -> None:
        """Hang up at once."""
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):  # where the other side hung up first
            await self.writer.wait_closed()
