"""A store that misbehaves on purpose: delays, failures, senseless answers, all from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final

import numpy as np

from kvtier.alarm import Alarm, Wait
from kvtier.backend import (
    Backend,
    ExtentBatch,
    ObjectBatch,
    ObjectStats,
    PutResult,
    check_extents,
    check_keys,
    check_objects,
    check_options,
)
from kvtier.clock import Clock, WallClock
from kvtier.errors import BackendError, SettingsError
from kvtier.pages import U8, PageStatus, expand_runs
from kvtier.wrappers.wrapper import Wrapper

_NEVER_NS: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """How often a store misbehaves, and how. Shares are of calls, but for ``fail_share``.

    Attributes:
        raise_share: calls that raise a BackendError; a put or delete has happened all the same in
            half of them.
        hang_share: calls that never end; they can be cancelled, and end with the store.
        delay_share: calls that take longer, by a random share of ``delay_s``.
        delay_s: how much longer, at most.
        fail_share: items of a read, put or delete that are FAILED; rows of a read are scribbled
            over, a put or delete has not happened.
        short_share: answers of a read or stat with fewer items than were asked for.
        garbage_share: answers of a read in which every status is a random byte.
        wrong_share: reads in which a page of one extent that is OK has wrong bytes.
    """

    raise_share: float = 0.0
    hang_share: float = 0.0
    delay_share: float = 0.0
    delay_s: float = 0.0
    fail_share: float = 0.0
    short_share: float = 0.0
    garbage_share: float = 0.0
    wrong_share: float = 0.0


_OPTIONS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "inner": Backend,
    "seed": int,
    **{field.name: float for field in fields(FaultPlan)},
}


class FaultsBackend(Wrapper):
    """Misbehaves by a plan. What befalls a call depends on the seed and its number alone.

    ``keys`` and ``close`` behave. The plan may be changed at any time.

    Options:
        inner: an open backend, which is closed with this one.
        seed: 1 by default.
        raise_share, …: as of :class:`FaultPlan`.

    Attributes:
        plan: what happens to the next calls.
    """

    name: ClassVar[str] = "faults"

    def __init__(
        self,
        inner: Backend,
        plan: FaultPlan,
        page_bytes: int,
        *,
        seed: int = 1,
        clock: Clock | None = None,
        wait: Wait | None = None,
    ) -> None:
        super().__init__(inner)
        self.plan = plan
        self._page_bytes = page_bytes
        self._seed = seed
        self._clock = clock or WallClock()
        self._wait = wait or Alarm(self._clock, "this faults backend")
        self._counts = dict.fromkeys(
            ("calls", "raised", "hung", "delayed", "failed_items", "short", "garbage", "wrong"), 0
        )

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> FaultsBackend:
        check_options(options, _OPTIONS, cls.name, required=("inner",))
        plan = {name: options[name] for name in options if name not in ("inner", "seed")}
        for name, value in plan.items():
            most = float("inf") if name == "delay_s" else 1
            if not 0 <= value <= most:
                raise SettingsError(
                    f"option {name!r} of backend 'faults' is {value}: it must be from 0 to {most}"
                )
        return cls(options["inner"], FaultPlan(**plan), page_bytes, seed=options.get("seed", 1))

    def counts(self) -> Mapping[str, int]:
        """``calls``, and what befell them."""
        return dict(self._counts)

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        self._wait.check()
        check_keys(keys, self.capability)
        fate = self._draw()
        await self._befall(fate)
        self._raise_if(fate.raises)
        stats = await self.inner.stat(keys)
        if fate.is_short and len(keys):
            self._counts["short"] += 1
            return ObjectStats(stats.pages[:-1], stats.versions[:-1])
        return stats

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        self._wait.check()
        check_extents(batch, out, self._page_bytes, self.capability)
        fate = self._draw()
        await self._befall(fate)
        self._raise_if(fate.raises)
        status = await self.inner.read(batch, out)
        if len(batch) == 0:
            return status
        failed = fate.failed(len(batch))
        if failed.any():
            self._counts["failed_items"] += int(failed.sum())
            rows = expand_runs(batch.row[failed].astype(np.uint64), batch.page_count[failed])
            out[rows] = fate.random.integers(0, 256, (1, self._page_bytes), np.uint8)
            status[failed] = PageStatus.FAILED
        if fate.is_wrong and (status == PageStatus.OK).any():
            self._counts["wrong"] += 1
            extent = fate.random.choice(np.flatnonzero(status == PageStatus.OK))
            out[batch.row[extent]] ^= np.uint8(0xFF)
        if fate.is_garbage:
            self._counts["garbage"] += 1
            return fate.random.integers(3, 256, len(batch), np.uint8)
        if fate.is_short:
            self._counts["short"] += 1
            return status[:-1]
        return status

    async def put(self, batch: ObjectBatch) -> PutResult:
        self._wait.check()
        check_objects(batch, self._page_bytes, self.capability)
        fate = self._draw()
        await self._befall(fate)
        self._raise_if(fate.raises and not fate.is_done)
        keep = ~fate.failed(len(batch))
        self._counts["failed_items"] += int((~keep).sum())
        some = ObjectBatch(
            keys=tuple(key for key, kept in zip(batch.keys, keep.tolist(), strict=True) if kept),
            page_counts=batch.page_counts[keep],
            payload=batch.payload[np.repeat(keep, batch.page_counts)],
        )
        result = await self.inner.put(batch if keep.all() else some)
        self._raise_if(fate.raises)
        status = np.full(len(batch), PageStatus.FAILED, np.uint8)
        versions = np.zeros(len(batch), np.uint64)
        status[keep], versions[keep] = result.status, result.versions
        return PutResult(status, versions)

    async def delete(self, keys: Sequence[bytes]) -> U8:
        self._wait.check()
        check_keys(keys, self.capability)
        fate = self._draw()
        await self._befall(fate)
        self._raise_if(fate.raises and not fate.is_done)
        keep = ~fate.failed(len(keys))
        self._counts["failed_items"] += int((~keep).sum())
        some = [key for key, kept in zip(keys, keep.tolist(), strict=True) if kept]
        status = np.full(len(keys), PageStatus.FAILED, np.uint8)
        status[keep] = await self.inner.delete(some)
        self._raise_if(fate.raises)
        return status

    async def release(self) -> None:
        self._wait.close()

    def _draw(self) -> _Fate:
        self._counts["calls"] += 1
        return _Fate(self.plan, np.random.default_rng([self._seed, self._counts["calls"]]))

    async def _befall(self, fate: _Fate) -> None:
        """What happens before a call goes through."""
        if fate.hangs:
            self._counts["hung"] += 1
            await self._wait.until(_NEVER_NS)
        elif fate.delay_ns:
            self._counts["delayed"] += 1
            await self._wait.until(self._clock.now_ns() + fate.delay_ns)

    def _raise_if(self, raises: bool) -> None:
        if raises:
            self._counts["raised"] += 1
            raise BackendError("a fault on purpose")


class _Fate:
    """What befalls one call."""

    def __init__(self, plan: FaultPlan, random: np.random.Generator) -> None:
        self.random = random
        self._fail_share = plan.fail_share
        draws = random.random(8).tolist()
        self.raises = draws[0] < plan.raise_share
        self.is_done = draws[1] < 0.5
        self.hangs = draws[2] < plan.hang_share
        self.delay_ns = round(draws[4] * plan.delay_s * 1e9) if draws[3] < plan.delay_share else 0
        self.is_short = draws[5] < plan.short_share
        self.is_garbage = draws[6] < plan.garbage_share
        self.is_wrong = draws[7] < plan.wrong_share

    def failed(self, items: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which items (bool[n]) are to be FAILED."""
        return self.random.random(items) < self._fail_share
