"""Failed items asked for again: after random pauses, and within a budget.

The pause before attempt n+1 is uniform in [0, min(cap, base * 2**(n-1))], the "full jitter" of
M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015). The budget is the one
of Finagle's ``RetryBudget``: every call deposits a share of a retry, every retry takes a whole
one, so a store that is gone sees little more than the load that it saw before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np

from kvtier.alarm import Alarm, Wait
from kvtier.backend import (
    Backend,
    ExtentBatch,
    ObjectBatch,
    ObjectStats,
    PutResult,
    check_options,
)
from kvtier.clock import Clock, WallClock
from kvtier.errors import UnavailableError
from kvtier.pages import I64, U8, PageStatus
from kvtier.settings import RetrySettings
from kvtier.wrappers.answers import checked_put, checked_stats, checked_status, failed_items
from kvtier.wrappers.wrapper import Wrapper

_SAVED_MAX: Final = 10.0
"""Retries that can be saved up; as many are there at the start."""

_OPTIONS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "inner": Backend,
    "rules": RetrySettings,
    "seed": int,
}

Ask = Callable[[I64 | None], Awaitable[U8]]
"""Asks the store for the chosen items (i64[m]; None: all n); returns their status."""


class RetryBackend(Wrapper):
    """Asks again for items that FAILED, and for all after an OSError, as BackendError is one.

    Everything can be asked for twice: a put publishes the same whole object once more, under a
    new version, and a key deleted by an attempt that seemed to fail is then ABSENT. ``keys`` is
    never asked for again. An answer in part is returned as it is when no attempt is left.

    Options:
        inner: an open backend, which is closed with this one.
        rules: how often, and when.
        seed: of the pauses; 1 by default.
    """

    name: ClassVar[str] = "retry"

    def __init__(
        self,
        inner: Backend,
        rules: RetrySettings,
        *,
        seed: int = 1,
        clock: Clock | None = None,
        wait: Wait | None = None,
    ) -> None:
        super().__init__(inner)
        self._rules = rules
        self._random = np.random.default_rng(seed)
        self._clock = clock or WallClock()
        self._wait = wait or Alarm(self._clock, "this retry backend")
        self._saved = _SAVED_MAX
        self._retries = 0
        self._given_up = 0
        self._over_budget = 0

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> RetryBackend:  # noqa: ARG003
        check_options(options, _OPTIONS, cls.name, required=("inner",))
        rules = options.get("rules", RetrySettings())
        return cls(options["inner"], rules, seed=options.get("seed", 1))

    def counts(self) -> Mapping[str, int]:
        """``retries``, calls ``given_up`` with items failed, and those of them ``over_budget``."""
        return {
            "retries": self._retries,
            "given_up": self._given_up,
            "over_budget": self._over_budget,
        }

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        found: list[ObjectStats] = []

        async def ask(_: I64 | None) -> U8:
            found.append(checked_stats(await self.inner.stat(keys), len(keys)))
            return np.empty(0, np.uint8)

        await self._repeat(ask, 0)
        return found[-1]

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        async def ask(chosen: I64 | None) -> U8:
            return await self.inner.read(_some_extents(batch, chosen), out)

        return await self._repeat(ask, len(batch))

    async def put(self, batch: ObjectBatch) -> PutResult:
        versions = np.zeros(len(batch), np.uint64)

        async def ask(chosen: I64 | None) -> U8:
            some = _some_objects(batch, chosen)
            result = checked_put(await self.inner.put(some), len(some))
            versions[slice(None) if chosen is None else chosen] = result.versions
            return result.status

        return PutResult(await self._repeat(ask, len(batch)), versions)

    async def delete(self, keys: Sequence[bytes]) -> U8:
        async def ask(chosen: I64 | None) -> U8:
            some = keys if chosen is None else [keys[index] for index in chosen.tolist()]
            return await self.inner.delete(some)

        return await self._repeat(ask, len(keys))

    async def release(self) -> None:
        self._wait.close()

    async def _repeat(self, ask: Ask, items: int) -> U8:
        """The status (u8[items]) after as many attempts as it takes, or as there may be."""
        self._saved = min(_SAVED_MAX, self._saved + self._rules.budget)
        start_ns = self._clock.now_ns()
        status: U8 | None = None
        chosen: I64 | None = None
        attempt = 0
        while True:
            attempt += 1
            error: OSError | None = None
            try:
                asked = items if chosen is None else len(chosen)
                answer = checked_status(await ask(chosen), asked)
            except OSError as raised:
                error = raised
            else:
                if chosen is None:
                    status = answer.copy()  # for it is changed below
                else:
                    assert status is not None
                    status[chosen] = answer
                failed = np.flatnonzero(failed_items(status))
                if len(failed) == 0:
                    return status
                status[failed] = PageStatus.FAILED
                chosen = failed
            if isinstance(error, UnavailableError) or not await self._pause(attempt, start_ns):
                self._given_up += 1
                if status is None:
                    assert error is not None
                    raise error
                return status

    async def _pause(self, attempt: int, start_ns: int) -> bool:
        """Wait until the next attempt may begin; False if there may be none."""
        rules = self._rules
        if attempt >= rules.attempts or not self.inner.available:
            return False
        most_s = min(rules.backoff_max_s, rules.backoff_s * 2.0 ** (attempt - 1))
        end_ns = self._clock.now_ns() + round(self._random.uniform(0, most_s) * 1e9)
        if end_ns - start_ns > rules.total_s * 1e9:
            return False
        if self._saved < 1:
            self._over_budget += 1
            return False
        self._saved -= 1
        self._retries += 1
        await self._wait.until(end_ns)
        return True


def _some_extents(batch: ExtentBatch, chosen: I64 | None) -> ExtentBatch:
    if chosen is None:
        return batch
    return ExtentBatch(
        keys=batch.keys,
        versions=batch.versions,
        key_index=batch.key_index[chosen],
        first_page=batch.first_page[chosen],
        page_count=batch.page_count[chosen],
        row=batch.row[chosen],
    )


def _some_objects(batch: ObjectBatch, chosen: I64 | None) -> ObjectBatch:
    """Objects of a batch; their payload is copied, for it must lie together."""
    if chosen is None:
        return batch
    keep = np.zeros(len(batch), np.bool_)
    keep[chosen] = True
    return ObjectBatch(
        keys=tuple(batch.keys[index] for index in chosen.tolist()),
        page_counts=batch.page_counts[chosen],
        payload=batch.payload[np.repeat(keep, batch.page_counts)],
    )
