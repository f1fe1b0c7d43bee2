"""The requests of one connection: started as there is room for them, answered in any order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from kvtier.backend import ExtentBatch
from kvtier.errors import KvtierError, LimitError, ProtocolError
from kvtier.pages import U8
from kvtier.server.answers import Answers, Buffers, reply_bytes
from kvtier.server.counting import Outcome
from kvtier.server.export import Export
from kvtier.wire.codec import encode
from kvtier.wire.frames import Frame
from kvtier.wire.messages import ErrorCode, Failure, Message, Read

_LOG: Final = logging.getLogger(__name__)

_REQUEST_BYTES: Final = 4096
"""What a request counts for beside its payload, so that a flood of small ones is bounded too."""


_SMALL_BYTES: Final = 64 << 10
"""A request that counts for no more, the only one of its connection, finds room however many
others hold what there is: those who take their answers are not stopped by those who do not."""


@dataclass(slots=True, eq=False)
class _Claim:
    """Memory that a request counts for."""

    size_bytes: int
    is_granted: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    number: int
    message: Message
    payload: U8 | None
    claim: _Claim


class Work:
    """What a client asked for and has not got yet.

    A request holds memory from the first byte of its payload until its answer left for the
    kernel. What has no room waits, and while something waits the connection is not read from.

    Args:
        export: shared by all connections.
        answers: what answers; closed with this.
        write: sends frames.
        answer_read: answers a read of so many bytes with no memory but the backend's, if it can
            now: bytes of the answer that the kernel had no room for, and the transport keeps; or
            None.
        refuse: hangs up on the client for a request that makes no sense.
        changed: called when :attr:`has_room` may have changed.

    Attributes:
        idle: set while nothing waits or runs.
        writable: cleared while the transport wants no more to be written.
    """

    def __init__(
        self,
        export: Export,
        answers: Answers,
        write: Callable[[Buffers], None],
        answer_read: Callable[[int, ExtentBatch, int], int | None],
        refuse: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self._export = export
        self._answers = answers
        self._write = write
        self._answer_read = answer_read
        self._refuse = refuse
        self._changed = changed
        self._waiting: deque[_Request] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._held_bytes = 0
        self._arriving: _Claim | None = None  # of the payload that is coming
        self._asking: _Claim | None = None  # stands in the line of the budget
        self._is_over = False
        self.idle = asyncio.Event()
        self.idle.set()
        self.writable = asyncio.Event()
        self.writable.set()

    @property
    def running(self) -> int:
        """Requests being worked on."""
        return len(self._running)

    @property
    def has_room(self) -> bool:
        """Whether more may be read."""
        return not self._waiting and (self._arriving is None or self._arriving.is_granted)

    def expect(self, frame: Frame) -> None:
        """The payload of ``frame`` begins to come."""
        self._arriving = _Claim(_REQUEST_BYTES + len(frame.body) + frame.payload_bytes)
        self._advance()

    def take(self, number: int, message: Message, payload: U8 | None, body_bytes: int) -> None:
        """A request is complete."""
        claim, self._arriving = self._arriving, None
        if claim is None:
            reply = reply_bytes(message, self._export.page_bytes)
            if reply > self._export.limits.frame.payload_bytes_max:
                reply = 0  # it will be refused: nobody needs to make room for it
            elif isinstance(message, Read) and self._answer_at_once(number, message.batch, reply):
                return
            claim = _Claim(_REQUEST_BYTES + body_bytes + reply)
        self._waiting.append(_Request(number, message, payload, claim))
        self.idle.clear()
        self._advance()

    def _answer_at_once(self, number: int, batch: ExtentBatch, reply: int) -> bool:
        """Answer a read that needs no room, if it would find some and nothing stands before it."""
        export = self._export
        if self._waiting or not (self._fits(reply) and export.budget.has_room(reply)):
            return False
        begun_ns = export.clock.now_ns()
        left_bytes = self._answer_read(number, batch, reply)
        if left_bytes is None:
            return False
        self._count(Read.__name__, Outcome.OK, begun_ns)
        if not self.writable.is_set():
            export.budget.take_anyway(left_bytes)
            self.idle.clear()
            self._run(_Claim(left_bytes, is_granted=True), self._drain())
        return True

    def end(self) -> None:
        """The client is gone: cancel everything, and give back what is held."""
        self._is_over = True
        budget = self._export.budget
        if self._asking is not None:
            budget.leave(self._granted)
        claims = [request.claim for request in self._waiting]
        claims += [self._arriving] if self._arriving is not None else []
        self._waiting.clear()
        self._arriving = self._asking = None
        for claim in claims:
            if claim.is_granted:
                budget.give(claim.size_bytes)
        for task in self._running:
            task.cancel()
        self._note_idle()
        self._export.spawn(self._answers.close())

    def _advance(self) -> None:
        """Start what there is room for, in the order in which it came."""
        while self._waiting and self._fits(self._waiting[0].claim.size_bytes):
            if not self._has_grant(self._waiting[0].claim):
                break
            request = self._waiting.popleft()
            self._run(request.claim, self._serve(request))
        if not self._waiting and self._arriving is not None:
            self._has_grant(self._arriving)
        self._changed()

    def _fits(self, size_bytes: int) -> bool:
        most = self._export.limits.inflight_bytes_max
        return self._held_bytes == 0 or self._held_bytes + size_bytes <= most

    def _has_grant(self, claim: _Claim) -> bool:
        """Whether the server has the memory; else this connection stands in line for it."""
        if claim.is_granted:
            return True
        budget = self._export.budget
        if claim.size_bytes <= _SMALL_BYTES and not self._running:
            if self._asking is not None:  # it came while others of this connection were running
                budget.leave(self._granted)
                self._asking = None
            budget.take_anyway(claim.size_bytes)
            claim.is_granted = True
        elif self._asking is None:
            if budget.take(claim.size_bytes, self._granted):
                claim.is_granted = True
            else:
                self._asking = claim
        return claim.is_granted

    def _granted(self) -> None:
        assert self._asking is not None
        claim, self._asking = self._asking, None
        claim.is_granted = True
        self._advance()

    def _run(self, claim: _Claim, work: Coroutine[Any, Any, None]) -> None:
        """Hold what was claimed until ``work`` has ended."""
        self._held_bytes += claim.size_bytes
        task = self._export.spawn(work)
        self._running.add(task)
        task.add_done_callback(partial(self._ended, claim))

    async def _serve(self, request: _Request) -> None:
        """Answer one request; it is held until its answer left for the kernel."""
        begun_ns = self._export.clock.now_ns()
        outcome = Outcome.CANCELLED
        try:
            outcome, buffers = await self._answer(request)
        except ProtocolError as error:
            outcome = Outcome.PROTOCOL
            self._refuse(str(error))
            return
        finally:
            self._count(type(request.message).__name__, outcome, begun_ns)
        self._write(buffers)
        await self.writable.wait()

    async def _drain(self) -> None:
        """The end of an answer leaves for the kernel."""
        await self.writable.wait()

    async def _answer(self, request: _Request) -> tuple[Outcome, Buffers]:
        number = request.number
        try:
            buffers = await self._answers.answer(number, request.message, request.payload)
            return Outcome.OK, buffers
        except ProtocolError:
            raise
        except LimitError as error:
            outcome, failure = Outcome.LIMIT, Failure(ErrorCode.LIMIT, str(error))
        except KvtierError as error:
            outcome, failure = Outcome.BACKEND, Failure(ErrorCode.BACKEND, str(error))
        except Exception as error:  # a defect of the backend must not end its other clients
            _LOG.exception("the exported backend raised what no backend may raise")
            text = f"{type(error).__name__}: {error}"
            outcome, failure = Outcome.BACKEND, Failure(ErrorCode.BACKEND, text)
        return outcome, [encode(failure, number)]

    def _count(self, kind: str, outcome: Outcome, begun_ns: int) -> None:
        latency_s = (self._export.clock.now_ns() - begun_ns) / 1e9
        self._export.counters.request(kind, outcome, latency_s)

    def _ended(self, claim: _Claim, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._held_bytes -= claim.size_bytes
        self._export.budget.give(claim.size_bytes)
        if not self._is_over:
            self._advance()
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._running and not self._waiting:
            self.idle.set()
