"""Retries: what is asked for again, when, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from kvtier_memory import MemoryBackend
from virtual_time import Stage, in_virtual_time

from kvtier.backend import ExtentBatch, ObjectBatch, ObjectStats, PutResult
from kvtier.errors import BackendError, ClosedError, UnavailableError
from kvtier.pages import U8, PageStatus
from kvtier.settings import RetrySettings
from kvtier.testing.batches import list_keys, make_extents, make_objects, put_objects, read_objects
from kvtier.testing.pages import make_pages
from kvtier.wrappers.retry import RetryBackend

PAGE = 512
PAGES = make_pages(b"a", 0, 8, PAGE)
RULES = RetrySettings(attempts=4, backoff_s=0.01, backoff_max_s=0.02, total_s=10.0, budget=1.0)

Fault = BaseException | list[int] | None
"""What a call does instead: raise, or FAIL the items at these places."""


class ScriptedBackend(MemoryBackend):
    """Each call takes the next fault of the script; without one it works."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(PAGE, None)
        self.stage = stage
        self.script: list[Fault] = []
        self.asked: list[int] = []
        self.asked_ms: list[float] = []
        self.shut = False

    @property
    def available(self) -> bool:
        return not self.shut

    def fault(self, items: int) -> list[int]:
        self.asked.append(items)
        self.asked_ms.append(self.stage.now_ms)
        fault = self.script.pop(0) if self.script else None
        if isinstance(fault, BaseException):
            raise fault
        return fault or []

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        self.fault(len(keys))
        return await super().stat(keys)

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        failed = self.fault(len(batch))
        status = await super().read(batch, out)
        for item in failed:
            out[batch.row[item]] = 0xEE
            status[item] = PageStatus.FAILED
        return status

    async def put(self, batch: ObjectBatch) -> PutResult:
        failed = self.fault(len(batch))
        result = await super().put(batch)
        result.status[failed] = PageStatus.FAILED
        result.versions[failed] = 0
        return result

    async def delete(self, keys: Sequence[bytes]) -> U8:
        failed = self.fault(len(keys))
        kept = [key for item, key in enumerate(keys) if item not in failed]
        status = np.full(len(keys), PageStatus.FAILED, np.uint8)
        status[[item for item in range(len(keys)) if item not in failed]] = await super().delete(
            kept
        )
        return status


def retried(
    work: Callable[[ScriptedBackend, RetryBackend, Stage], Any], rules: RetrySettings = RULES
) -> None:
    async def run(stage: Stage) -> None:
        inner = ScriptedBackend(stage)
        backend = RetryBackend(inner, rules, seed=7, clock=stage.clock, wait=stage.wait())
        await work(inner, backend, stage)
        await backend.close()

    in_virtual_time(run)


async def stored(inner: ScriptedBackend) -> ExtentBatch:
    """An object of eight pages, and a batch of each by itself."""
    versions = await put_objects(inner, {b"a": PAGES}, PAGE)
    inner.asked.clear()
    return make_extents(versions, [(b"a", page, 1, page) for page in range(8)])


def test_only_failed_extents_are_read_again() -> None:
    async def work(inner: ScriptedBackend, backend: RetryBackend, stage: Stage) -> None:
        batch = await stored(inner)
        inner.script = [[1, 5, 7], [0, 2]]
        out = np.zeros((8, PAGE), np.uint8)
        status = await backend.read(batch, out)
        assert inner.asked == [8, 3, 2]
        assert not status.any()
        np.testing.assert_array_equal(out, PAGES)
        assert backend.counts() == {"retries": 2, "given_up": 0, "over_budget": 0}

    retried(work)


def test_absent_is_an_answer() -> None:
    async def work(inner: ScriptedBackend, backend: RetryBackend, stage: Stage) -> None:
        await stored(inner)
        version = int((await MemoryBackend.stat(inner, [b"a"])).versions[0])
        past_the_end = (b"a", 7, 2, 1)
        batch = make_extents({b"none": 1, b"a": version}, [(b"none", 0, 1, 0), past_the_end])
        status = await backend.read(batch, np.zeros((3, PAGE), np.uint8))
        assert status.tolist() == [PageStatus.ABSENT] * 2
        assert inner.asked == [2]

    retried(work)


def test_what_still_fails_in_the_end_is_failed_and_the_rest_is_kept() -> None:
    async def work(inner: ScriptedBackend, backend: RetryBackend, stage: Stage) -> None:
        batch = await stored(inner)
        inner.script = [[3], BackendError("gone"), [0], BackendError("gone")]
        out = np.zeros((8, PAGE), np.uint8)
        status = await backend.read(batch, out)
        assert inner.asked == [8, 1, 1, 1]
        assert np.flatnonzero(status).tolist() == [3]
        np.testing.assert_array_equal(np.delete(out, 3, 0), np.delete(PAGES, 3, 0))
        assert backend.counts()["given_up"] == 1

    retried(work)


def test_where_no_attempt_answered_the_last_error_is_raised() -> None:
    async def work(inner: ScriptedBackend, backend: RetryBackend, stage: Stage) -> None:
        inner.script = [BackendError(str(number)) for number in range(4)]
        with pytest.raises(BackendError, match="3"):
            await backend.stat([b"a"])
        assert len(inner.asked) == 4

    retried(work)


def test_refused_objects_are_put_again_and_the_others_are_not() -> None:
    async def work(inner: ScriptedBackend, backend: RetryBackend, stage: Stage) -> None:
        objects = {b"%d" % key: make_pages(b"%d" % key, 0, 1 + key, PAGE) for key in range(5)}
        inner.script = [[0, 3], [1]]
        result = await backend.put(make_objects(objects, PAGE))
        assert inner.asked == [5, 2, 1]
        assert not result.status.any()
        assert result.versions.tolist() == (await inner.stat(list(objects))).versions.tolist()
        found = await read_objects(inner, list(objects), PAGE)
        for key, pages in objects.items():
            np.testing.assert_array_equal(found[key], pages)

    retried(work)


def test_failed_deletes_are_done_again() -> None:
    async def work(inner: ScriptedBackend, backend: RetryBackend, stage: Stage) -> None:
        await put_objects(inner, {b"a": PAGES, b"b": PAGES}, PAGE)
        inner.asked.clear()
        inner.script = [[1]]
        status = await backend.delete([b"none", b"a", b"b"])
        assert status.tolist() == [PageStatus.ABSENT, PageStatus.OK, PageStatus.OK]
        assert inner.asked == [3, 1]
        assert await list_keys(inner) == []

    retried(work)


@pytest.mark.parametrize(
    "error", [ClosedError("closed"), RuntimeError("a defect"), UnavailableError("left alone")]
)
def test_what_no_repetition_mends_is_not_repeated(error: Exception) -> None:
    async def work(inner: ScriptedBackend, backend: RetryBackend, stage: Stage) -> None:
        inner.script = [error]
        with pytest.raises(type(error)):
            await backend.stat([b"a"])
        assert inner.asked == [1]
        assert stage.now_ms == 0

    retried(work)


def test_a_store_that_is_left_alone_is_not_asked_again() -> None:
    async def work(inner: ScriptedBackend, backend: RetryBackend, stage: Stage) -> None:
        batch = await stored(inner)
        inner.shut = True
        inner.script = [[2]]
        status = await backend.read(batch, np.zeros((8, PAGE), np.uint8))
        assert np.flatnonzero(status).tolist() == [2]
        assert inner.asked == [8]

    retried(work)


def test_an_answer_of_another_length_is_asked_for_again() -> None:
    class ShortOnce(ScriptedBackend):
        async def read(self, batch: ExtentBatch, out: U8) -> U8:
            status = await super().read(batch, out)
            return status[:-1] if len(self.asked) == 1 else status

    async def run(stage: Stage) -> None:
        inner = ShortOnce(stage)
        batch = await stored(inner)
        backend = RetryBackend(inner, RULES, clock=stage.clock, wait=stage.wait())
        out = np.zeros((8, PAGE), np.uint8)
        assert not (await backend.read(batch, out)).any()
        np.testing.assert_array_equal(out, PAGES)
        await backend.close()

    in_virtual_time(run)


def test_pauses_grow_are_random_and_are_bounded() -> None:
    firsts: list[float] = []
    thirds: list[float] = []

    async def work(inner: ScriptedBackend, backend: RetryBackend, stage: Stage) -> None:
        for _ in range(100):
            backend._saved = 10
            inner.script = [BackendError("gone")] * 3
            await backend.stat([b"a"])
            pauses = np.diff(inner.asked_ms[-4:])
            firsts.append(pauses[0])
            thirds.append(pauses[2])

    retried(work)
    assert 0 <= min(firsts) < max(firsts) <= 10
    assert 10 < max(thirds) <= 20, "twice doubled, and capped"
    assert len(set(firsts)) == 100


def test_the_same_seed_pauses_alike() -> None:
    ends: list[float] = []

    async def work(inner: ScriptedBackend, backend: RetryBackend, stage: Stage) -> None:
        inner.script = [BackendError("gone")] * 3
        await backend.stat([b"a"])
        ends.append(stage.now_ms)

    retried(work)
    retried(work)
    assert ends[0] == ends[1] > 0


def test_no_attempt_begins_after_the_total_time() -> None:
    async def work(inner: ScriptedBackend, backend: RetryBackend, stage: Stage) -> None:
        inner.script = [BackendError("gone")] * 1000
        with pytest.raises(BackendError):
            await backend.stat([b"a"])
        assert 10 < len(inner.asked) < 100
        assert stage.now_ms <= 500

    rules = RetrySettings(attempts=100, backoff_s=0.02, backoff_max_s=0.02, total_s=0.5, budget=99)
    retried(work, rules)


def test_a_dead_store_sees_a_budget_of_retries_and_no_more() -> None:
    async def work(inner: ScriptedBackend, backend: RetryBackend, stage: Stage) -> None:
        calls = 500
        inner.script = [BackendError("gone")] * 10_000
        for _ in range(calls):
            with pytest.raises(BackendError):
                await backend.stat([b"a"])
        retries = len(inner.asked) - calls
        assert retries == pytest.approx(0.1 * calls + 10, abs=1)
        assert backend.counts()["over_budget"] > 400

    retried(work, RetrySettings(attempts=3, budget=0.1))


def test_a_cancelled_call_leaves_its_pause_at_once() -> None:
    async def work(inner: ScriptedBackend, backend: RetryBackend, stage: Stage) -> None:
        inner.script = [BackendError("gone")] * 10
        call = asyncio.ensure_future(backend.stat([b"a"]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert len(inner.asked) == 1
        assert stage.now_ms == 0

    retried(work, RetrySettings(backoff_s=100, backoff_max_s=100, total_s=1000))


def test_close_ends_the_pauses() -> None:
    async def work(inner: ScriptedBackend, backend: RetryBackend, stage: Stage) -> None:
        inner.script = [BackendError("gone")] * 10
        call = asyncio.ensure_future(backend.stat([b"a"]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await backend.close()
        with pytest.raises(ClosedError):
            await call

    retried(work, RetrySettings(backoff_s=100, backoff_max_s=100, total_s=1000))
