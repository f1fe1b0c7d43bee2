"""The circuit breaker: when it opens, what it lets through, and when it closes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gated_backend import GatedBackend
from virtual_time import Stage, in_virtual_time

from kvtier.clock import VirtualClock
from kvtier.errors import BackendError, LimitError, UnavailableError
from kvtier.pages import PageStatus
from kvtier.settings import BreakerSettings
from kvtier.testing.batches import make_extents, put_objects
from kvtier.testing.pages import make_pages
from kvtier.wrappers.breaker import BreakerBackend
from kvtier.wrappers.circuit import Circuit, Outcome, State

S = 1_000_000_000
RULES = BreakerSettings(failure_share=0.5, calls_min=4, window_s=10.0, open_s=5.0, probes=1)


class Driven:
    """A circuit, and the time."""

    def __init__(self, rules: BreakerSettings = RULES) -> None:
        self.clock = VirtualClock()
        self.circuit = Circuit(rules, self.clock)

    def pass_s(self, seconds: float) -> None:
        self.clock.advance_to(self.clock.now_ns() + round(seconds * S))

    def call(self, outcome: Outcome, count: int = 1) -> None:
        for _ in range(count):
            number = self.circuit.begin()
            assert number is not None
            self.circuit.end(number, outcome)

    def break_down(self) -> None:
        self.call(Outcome.FAILED, RULES.calls_min)
        assert self.circuit.state is State.OPEN


def test_it_opens_at_the_share_of_failures_but_not_for_a_few_calls() -> None:
    driven = Driven()
    driven.call(Outcome.FAILED, 3)
    assert driven.circuit.state is State.CLOSED
    driven.call(Outcome.FAILED)
    assert driven.circuit.state is State.OPEN


def test_it_stays_closed_below_the_share() -> None:
    driven = Driven()
    for _ in range(50):
        driven.call(Outcome.ANSWERED, 2)
        driven.call(Outcome.FAILED)
    assert driven.circuit.state is State.CLOSED


def test_failures_older_than_the_window_no_longer_count() -> None:
    driven = Driven()
    driven.call(Outcome.FAILED, 3)
    driven.pass_s(10.1)
    driven.call(Outcome.FAILED, 3)
    assert driven.circuit.state is State.CLOSED


def test_callers_that_leave_say_nothing_of_the_store() -> None:
    driven = Driven()
    driven.call(Outcome.LEFT, 100)
    driven.call(Outcome.FAILED, 3)
    assert driven.circuit.state is State.CLOSED


def test_open_it_lets_nothing_through_for_its_period() -> None:
    driven = Driven()
    driven.break_down()
    driven.pass_s(4.999)
    assert not driven.circuit.lets_through
    assert driven.circuit.begin() is None
    assert driven.circuit.rejected == 1
    driven.pass_s(0.001)
    assert driven.circuit.state is State.HALF_OPEN


def test_half_open_it_lets_a_probe_through_whose_answer_closes_it() -> None:
    driven = Driven()
    driven.break_down()
    driven.pass_s(5)
    probe = driven.circuit.begin()
    assert probe is not None
    assert driven.circuit.begin() is None
    driven.circuit.end(probe, Outcome.ANSWERED)
    assert driven.circuit.state is State.CLOSED


def test_a_failed_probe_opens_it_for_another_period() -> None:
    driven = Driven()
    driven.break_down()
    driven.pass_s(5)
    driven.call(Outcome.FAILED)
    driven.pass_s(4.9)
    assert driven.circuit.state is State.OPEN
    assert driven.circuit.opened == 2
    driven.pass_s(0.1)
    assert driven.circuit.state is State.HALF_OPEN


def test_a_probe_whose_caller_left_makes_room_for_another() -> None:
    driven = Driven()
    driven.break_down()
    driven.pass_s(5)
    driven.call(Outcome.LEFT)
    driven.call(Outcome.ANSWERED)
    assert driven.circuit.state is State.CLOSED


def test_a_probe_that_hangs_keeps_others_out_for_one_period_only() -> None:
    driven = Driven()  # without slow_s: nothing else ever ends the wait for it
    driven.break_down()
    driven.pass_s(5)
    hanging = driven.circuit.begin()
    assert hanging is not None
    driven.pass_s(4.999)
    assert driven.circuit.begin() is None
    driven.pass_s(0.001)
    driven.call(Outcome.ANSWERED)
    assert driven.circuit.state is State.CLOSED
    driven.circuit.end(hanging, Outcome.FAILED)  # of before: says nothing any more
    assert driven.circuit.failures == RULES.calls_min


def test_as_many_probes_as_it_is_told_must_be_answered() -> None:
    driven = Driven(BreakerSettings(calls_min=1, failure_share=1.0, probes=3))
    driven.call(Outcome.FAILED)
    driven.pass_s(5)
    first = [driven.circuit.begin() for _ in range(3)]
    assert driven.circuit.begin() is None
    for probe in first:
        assert probe is not None
        assert driven.circuit.state is State.HALF_OPEN
        driven.circuit.end(probe, Outcome.ANSWERED)
    assert driven.circuit.state is State.CLOSED


def test_what_began_before_it_opened_says_nothing_when_it_ends_later() -> None:
    driven = Driven()
    old = driven.circuit.begin()
    assert old is not None
    driven.break_down()
    driven.pass_s(5)
    assert driven.circuit.state is State.HALF_OPEN
    driven.circuit.end(old, Outcome.ANSWERED)
    assert driven.circuit.state is State.HALF_OPEN


def test_calls_that_take_too_long_open_it_before_they_end() -> None:
    driven = Driven(BreakerSettings(calls_min=3, slow_s=1.0))
    numbers = [driven.circuit.begin() for _ in range(3)]
    driven.pass_s(1.0)
    assert driven.circuit.state is State.CLOSED
    driven.pass_s(0.001)
    assert driven.circuit.state is State.OPEN
    assert (driven.circuit.slow, driven.circuit.failures) == (3, 3)
    for number in numbers:
        assert number is not None
        driven.circuit.end(number, Outcome.ANSWERED)
    assert driven.circuit.failures == 3


def test_a_slow_answer_counts_once() -> None:
    driven = Driven(BreakerSettings(calls_min=1000, slow_s=1.0))
    number = driven.circuit.begin()
    assert number is not None
    driven.pass_s(2)
    driven.circuit.end(number, Outcome.FAILED)
    assert (driven.circuit.slow, driven.circuit.failures) == (1, 1)


def test_a_slow_probe_opens_it_again() -> None:
    driven = Driven(BreakerSettings(calls_min=1, slow_s=1.0, open_s=5.0))
    driven.call(Outcome.FAILED)
    driven.pass_s(5)
    assert driven.circuit.begin() is not None
    driven.pass_s(1.1)
    assert driven.circuit.state is State.OPEN


# -- around a backend ------------------------------------------------------------------------------

BATCH = make_extents({b"a": 1}, [(b"a", 0, 1, 0), (b"a", 1, 1, 1)])


def rows() -> Any:
    return np.zeros((2, 512), np.uint8)


def broken(work: Callable[[GatedBackend, BreakerBackend, Stage], Any]) -> None:
    async def run(stage: Stage) -> None:
        inner = GatedBackend(512)
        backend = BreakerBackend(inner, RULES, clock=stage.clock)
        await work(inner, backend, stage)
        await backend.close()

    in_virtual_time(run)


def test_an_open_breaker_refuses_at_once_and_says_so_beforehand() -> None:
    async def work(inner: GatedBackend, backend: BreakerBackend, stage: Stage) -> None:
        inner.answer = RuntimeError("a defect of the store")
        for _ in range(4):
            assert backend.available
            with pytest.raises(RuntimeError):
                await backend.read(BATCH, rows())
        assert not backend.available
        asked = len(inner.asked)
        for call in (backend.read(BATCH, rows()), backend.stat([b"a"]), backend.delete([b"a"])):
            with pytest.raises(UnavailableError):
                await call
        assert len(inner.asked) == asked
        inner.answer = None
        await asyncio.sleep(RULES.open_s)
        assert backend.available
        await backend.read(BATCH, rows())
        assert backend.circuit.state is State.CLOSED
        assert backend.counts() == {"opened": 1, "rejected": 3, "failures": 4, "slow": 0}

    broken(work)


def test_a_call_of_which_some_items_were_answered_is_no_failure() -> None:
    async def work(inner: GatedBackend, backend: BreakerBackend, stage: Stage) -> None:
        inner.answer = np.array([PageStatus.FAILED, PageStatus.ABSENT], np.uint8)
        for _ in range(10):
            await backend.read(BATCH, rows())
        assert backend.circuit.state is State.CLOSED
        inner.answer = np.array([PageStatus.FAILED, 77], np.uint8)
        for _ in range(30):
            if backend.available:
                await backend.read(BATCH, rows())
        assert backend.circuit.state is State.OPEN

    broken(work)


def test_mistakes_of_the_caller_do_not_open_it() -> None:
    async def work(inner: GatedBackend, backend: BreakerBackend, stage: Stage) -> None:
        versions = await put_objects(backend, {b"a": make_pages(b"a", 0, 1, 512)}, 512)
        for _ in range(10):
            with pytest.raises(LimitError):
                await backend.stat([b""])
            status = await backend.read(make_extents(versions, [(b"a", 0, 2, 0)]), rows())
            assert status.tolist() == [PageStatus.ABSENT]  # the object has one page
        assert backend.available
        assert backend.circuit.failures == 0

    broken(work)


def test_refused_puts_open_it_and_cancelled_ones_do_not() -> None:
    async def work(inner: GatedBackend, backend: BreakerBackend, stage: Stage) -> None:
        pages = {b"a": make_pages(b"a", 0, 1, 512)}
        inner.put_gate.clear()
        for _ in range(10):
            putting = asyncio.ensure_future(put_objects(backend, pages, 512))
            await asyncio.sleep(0.001)
            putting.cancel()
            await asyncio.wait([putting])
        assert backend.available
        inner.refuse_puts = True
        for _ in range(4):
            with pytest.raises(AssertionError):
                await put_objects(backend, pages, 512)
        assert not backend.available

    broken(work)


def test_the_error_of_an_open_breaker_is_a_backend_error() -> None:
    assert issubclass(UnavailableError, BackendError)
