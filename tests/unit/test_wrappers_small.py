"""Deadlines, the negative cache, the rate limit and the faults, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gated_backend import GatedBackend
from kvtier_memory import MemoryBackend
from virtual_time import Stage, in_virtual_time

from kvtier.backend import ObjectStats
from kvtier.errors import BackendError, ClosedError, UnavailableError
from kvtier.pages import U8, PageStatus
from kvtier.settings import NegativeSettings, RateSettings
from kvtier.testing.batches import make_extents, make_objects, put_objects, read_objects
from kvtier.testing.pages import make_pages
from kvtier.wrappers.deadline import DeadlineBackend
from kvtier.wrappers.faults import FaultPlan, FaultsBackend
from kvtier.wrappers.negative import NegativeBackend
from kvtier.wrappers.rate import RateBackend

PAGE = 512
PAGES = make_pages(b"a", 0, 8, PAGE)


def rows(count: int = 1) -> U8:
    return np.zeros((count, PAGE), np.uint8)


def one(version: int = 1) -> Any:
    return make_extents({b"a": version}, [(b"a", 0, 1, 0)])


class TestDeadline:
    def test_a_call_that_is_not_answered_in_time_fails_and_is_cancelled(self) -> None:
        async def work(stage: Stage) -> None:
            inner = GatedBackend(PAGE)
            version = (await put_objects(inner, {b"a": PAGES}, PAGE))[b"a"]
            backend = DeadlineBackend(inner, read_timeout_s=2.0)
            inner.gate.clear()
            out = rows()
            with pytest.raises(BackendError, match="no answer within 2 s"):
                await backend.read(one(version), out)
            assert stage.now_ms == 2000
            inner.gate.set()
            await asyncio.sleep(1)
            assert not out.any(), "touched after the call had failed"
            assert not (await backend.read(one(version), out)).any()
            assert backend.counts()["timeouts"] == 1

        in_virtual_time(work)

    def test_a_put_has_a_bound_of_its_own(self) -> None:
        async def work(stage: Stage) -> None:
            inner = GatedBackend(PAGE)
            backend = DeadlineBackend(inner, read_timeout_s=1.0, write_timeout_s=5.0)
            inner.put_gate.clear()
            with pytest.raises(BackendError):
                await backend.put(make_objects({b"a": PAGES}, PAGE))
            assert stage.now_ms == 5000
            with pytest.raises(BackendError):
                await backend.delete([b"a"])
            assert stage.now_ms == 10_000

        in_virtual_time(work)

    def test_late_reads_go_on_but_only_so_many(self) -> None:
        async def work(stage: Stage) -> None:
            inner = GatedBackend(PAGE)
            version = (await put_objects(inner, {b"a": PAGES}, PAGE))[b"a"]
            backend = DeadlineBackend(inner, read_timeout_s=10.0, late_s=1.0, late_max=2)
            inner.gate.clear()
            reads = []
            for _ in range(5):
                reads.append(asyncio.ensure_future(backend.read(one(version), rows())))
                await asyncio.sleep(0.01)
            await asyncio.sleep(1.5)
            assert [read.done() for read in reads] == [False, False, True, True, True]
            for read in reads[2:]:
                with pytest.raises(BackendError, match="no answer within 1 s"):
                    await read
            inner.gate.set()
            assert [(await read).tolist() for read in reads[:2]] == [[0], [0]]
            assert backend.counts() == {"late": 5, "timeouts": 3, "crowded_out": 3}
            inner.gate.clear()
            again = [asyncio.ensure_future(backend.read(one(version), rows())) for _ in range(2)]
            await asyncio.sleep(1.5)
            assert not any(read.done() for read in again), "the first ones have left"
            inner.gate.set()
            await asyncio.gather(*again)

        in_virtual_time(work)

    def test_a_timeout_of_the_store_is_passed_on(self) -> None:
        async def work(stage: Stage) -> None:
            inner = GatedBackend(PAGE)
            inner.answer = TimeoutError("of the store")
            backend = DeadlineBackend(inner, read_timeout_s=1.0)
            with pytest.raises(TimeoutError, match="of the store"):
                await backend.read(one(), rows())
            assert backend.counts()["timeouts"] == 0

        in_virtual_time(work)


class CountingStat(MemoryBackend):
    """Counts the keys that it is asked for, and may be held up."""

    def __init__(self) -> None:
        super().__init__(PAGE, None)
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        self.asked += len(keys)
        found = await super().stat(keys)
        await self.gate.wait()
        return found


class TestNegative:
    rules = NegativeSettings(ttl_s=1.0, keys_max=4)

    def run(self, work: Any) -> None:
        async def run(stage: Stage) -> None:
            inner = CountingStat()
            await work(inner, NegativeBackend(inner, self.rules, clock=stage.clock))

        in_virtual_time(run)

    def test_missing_keys_are_asked_for_once_until_their_time_is_up(self) -> None:
        async def work(inner: CountingStat, backend: NegativeBackend) -> None:
            await put_objects(inner, {b"there": PAGES}, PAGE)
            for _ in range(3):
                stats = await backend.stat([b"a", b"there", b"b"])
                assert stats.pages.tolist() == [-1, 8, -1]
                assert stats.versions[1] != 0
            assert inner.asked == 3 + 1 + 1
            assert backend.counts() == {"hits": 4, "remembered": 2}
            await asyncio.sleep(1.0)
            await backend.stat([b"a", b"b"])
            assert inner.asked == 5 + 2

        self.run(work)

    def test_what_is_put_through_it_is_seen_at_once(self) -> None:
        async def work(inner: CountingStat, backend: NegativeBackend) -> None:
            await backend.stat([b"a"])
            await put_objects(backend, {b"a": PAGES}, PAGE)
            assert (await backend.stat([b"a"])).pages.tolist() == [8]
            await backend.delete([b"a"])
            assert (await backend.stat([b"a"])).pages.tolist() == [-1]

        self.run(work)

    def test_a_stat_that_a_put_overtook_is_not_remembered(self) -> None:
        async def work(inner: CountingStat, backend: NegativeBackend) -> None:
            inner.gate.clear()
            asking = asyncio.ensure_future(backend.stat([b"a"]))
            await asyncio.sleep(0.1)
            await put_objects(backend, {b"a": PAGES}, PAGE)
            inner.gate.set()
            assert (await asking).pages.tolist() == [-1]
            assert (await backend.stat([b"a"])).pages.tolist() == [8]

        self.run(work)

    def test_what_others_put_is_seen_when_the_time_is_up(self) -> None:
        async def work(inner: CountingStat, backend: NegativeBackend) -> None:
            await backend.stat([b"a"])
            await put_objects(inner, {b"a": PAGES}, PAGE)
            await asyncio.sleep(0.99)
            assert (await backend.stat([b"a"])).pages.tolist() == [-1]
            await asyncio.sleep(0.01)
            assert (await backend.stat([b"a"])).pages.tolist() == [8]

        self.run(work)

    def test_only_so_many_keys_are_remembered_the_oldest_go_first(self) -> None:
        async def work(inner: CountingStat, backend: NegativeBackend) -> None:
            await backend.stat([b"%d" % number for number in range(10)])
            inner.asked = 0
            await backend.stat([b"6", b"7", b"8", b"9"])
            assert inner.asked == 0
            await backend.stat([b"5"])
            assert inner.asked == 1

        self.run(work)


class TestRate:
    def run(self, rules: RateSettings, work: Any) -> None:
        async def run(stage: Stage) -> None:
            inner = GatedBackend(PAGE)
            backend = RateBackend(inner, rules, PAGE, clock=stage.clock, wait=stage.wait())
            version = (await put_objects(inner, {b"a": PAGES}, PAGE))[b"a"]
            await work(stage, inner, backend, version)
            await backend.close()

        in_virtual_time(run)

    def test_after_a_burst_operations_come_at_their_rate(self) -> None:
        async def work(stage: Stage, _: Any, backend: RateBackend, version: int) -> None:
            ends = []

            async def read() -> None:
                await backend.read(one(version), rows())
                ends.append(stage.now_ms)

            await asyncio.gather(*(read() for _ in range(14)))
            assert ends == pytest.approx([0.0] * 10 + [10.0, 20.0, 30.0, 40.0])
            await asyncio.sleep(10)
            await asyncio.gather(*(backend.stat([b"a"]) for _ in range(10)))
            assert stage.now_ms == pytest.approx(10_040)
            assert backend.counts() == {"delayed": 4, "refused": 0}

        self.run(RateSettings(iops=100, burst_s=0.1), work)

    def test_bytes_of_reads_and_writes_count_together(self) -> None:
        async def work(stage: Stage, _: Any, backend: RateBackend, version: int) -> None:
            await put_objects(backend, {b"b": PAGES}, PAGE)  # all that the bucket holds, and 4 more
            await backend.read(one(version), rows())
            assert stage.now_ms == pytest.approx(500)

        self.run(RateSettings(bytes_per_s=10 * PAGE, burst_s=0.4), work)

    def test_whoever_came_first_goes_first_however_much_it_takes(self) -> None:
        async def work(stage: Stage, _: Any, backend: RateBackend, version: int) -> None:
            order: list[str] = []

            async def ask(name: str, keys: int) -> None:
                await backend.stat([b"a"] * keys)
                order.append(name)

            await asyncio.gather(ask("first", 10), ask("large", 50), ask("a", 1), ask("b", 1))
            assert order == ["first", "large", "a", "b"]
            assert stage.now_ms == pytest.approx((10 + 50 + 1 + 1 - 10) * 10)

        self.run(RateSettings(iops=100, burst_s=0.1), work)

    def test_a_call_that_leaves_the_queue_takes_nothing(self) -> None:
        async def work(stage: Stage, _: Any, backend: RateBackend, version: int) -> None:
            await backend.stat([b"a"] * 10)
            waiting = [asyncio.ensure_future(backend.stat([b"a"])) for _ in range(3)]
            await asyncio.sleep(0.001)
            waiting[0].cancel()
            waiting[1].cancel()
            await waiting[2]
            assert stage.now_ms == pytest.approx(10)

        self.run(RateSettings(iops=100, burst_s=0.1), work)

    def test_more_than_may_wait_are_refused_at_once(self) -> None:
        async def work(stage: Stage, _: Any, backend: RateBackend, version: int) -> None:
            await backend.stat([b"a"])
            waiting = [asyncio.ensure_future(backend.stat([b"a"])) for _ in range(2)]
            await asyncio.sleep(0)
            assert not backend.available
            with pytest.raises(UnavailableError):
                await backend.stat([b"a"])
            await asyncio.gather(*waiting)
            assert backend.available
            assert backend.counts()["refused"] == 1

        self.run(RateSettings(iops=1, burst_s=1, waiting_max=2), work)

    def test_close_ends_those_that_wait(self) -> None:
        async def work(stage: Stage, _: Any, backend: RateBackend, version: int) -> None:
            await backend.stat([b"a"])
            waiting = [asyncio.ensure_future(backend.stat([b"a"])) for _ in range(3)]
            await asyncio.sleep(0)
            await backend.close()
            for answer in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(answer, ClosedError)

        self.run(RateSettings(iops=1e-3, burst_s=1), work)


class TestFaults:
    PLAN = FaultPlan(
        raise_share=0.2,
        delay_share=0.5,
        delay_s=0.1,
        fail_share=0.2,
        short_share=0.1,
        garbage_share=0.1,
        wrong_share=0.1,
    )

    def outcomes(self, seed: int) -> list[Any]:
        """What befell a hundred reads, one after the other."""
        found: list[Any] = []

        async def work(stage: Stage) -> None:
            inner = MemoryBackend(PAGE, None)
            versions = await put_objects(inner, {b"a": PAGES}, PAGE)
            batch = make_extents(versions, [(b"a", page, 1, page) for page in range(8)])
            backend = FaultsBackend(
                inner, self.PLAN, PAGE, seed=seed, clock=stage.clock, wait=stage.wait()
            )
            for _ in range(100):
                out = rows(8)
                try:
                    status = await backend.read(batch, out)
                except BackendError:
                    found.append("raised")
                else:
                    wrong = (out[: len(status)] != PAGES[: len(status)]).any(axis=1)
                    found.append((status.tolist(), wrong.tolist(), stage.now_ms))
            found.append(backend.counts())

        in_virtual_time(work)
        return found

    def test_the_same_seed_misbehaves_alike(self) -> None:
        assert self.outcomes(1) == self.outcomes(1) != self.outcomes(2)

    def test_everything_planned_happens(self) -> None:
        counts = self.outcomes(3)[-1]
        assert counts["calls"] == 100
        assert all(count > 0 for name, count in counts.items() if name != "hung")

    def test_what_befalls_a_call_depends_on_its_number_alone(self) -> None:
        async def work(stage: Stage) -> None:
            plan = FaultPlan(delay_share=1.0, delay_s=1.0)
            inner = MemoryBackend(PAGE, None)
            ends = []
            for other in (False, True):
                clock, wait = stage.clock, stage.wait()
                backend = FaultsBackend(inner, plan, PAGE, seed=5, clock=clock, wait=wait)
                beside = asyncio.ensure_future(backend.stat([b"x"] * (20 if other else 1)))
                await asyncio.sleep(0)
                start_ms = stage.now_ms
                await backend.stat([b"a"])
                ends.append(stage.now_ms - start_ms)
                await beside
            assert ends[0] == pytest.approx(ends[1])

        in_virtual_time(work)

    def test_a_failed_item_of_a_put_or_delete_has_not_happened(self) -> None:
        async def work(stage: Stage) -> None:
            inner = MemoryBackend(PAGE, None)
            backend = FaultsBackend(
                inner, FaultPlan(fail_share=0.5), PAGE, clock=stage.clock, wait=stage.wait()
            )
            keys = [b"%d" % number for number in range(40)]
            result = await backend.put(make_objects(dict.fromkeys(keys, PAGES[:2]), PAGE))
            found = await read_objects(inner, keys, PAGE)
            for key, status in zip(keys, result.status.tolist(), strict=True):
                assert (found[key] is None) == (status == PageStatus.FAILED)
            await put_objects(inner, dict.fromkeys(keys, PAGES[:1]), PAGE)
            deleted = await backend.delete(keys)
            left = (await inner.stat(keys)).pages > 0
            np.testing.assert_array_equal(left, deleted == PageStatus.FAILED)

        in_virtual_time(work)

    def test_a_call_that_hangs_ends_with_the_store_or_its_caller(self) -> None:
        async def work(stage: Stage) -> None:
            inner = MemoryBackend(PAGE, None)
            backend = FaultsBackend(
                inner, FaultPlan(hang_share=1.0), PAGE, clock=stage.clock, wait=stage.wait()
            )
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3600):
                    await backend.stat([b"a"])
            hanging = asyncio.ensure_future(backend.read(one(), rows()))
            await asyncio.sleep(1)
            await backend.close()
            with pytest.raises(ClosedError):
                await hanging

        in_virtual_time(work)
