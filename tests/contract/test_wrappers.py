"""Each wrapper is a backend, and so are all of them together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from kvtier_memory import MemoryBackend

from kvtier.backend import Backend
from kvtier.clock import WallClock
from kvtier.errors import SettingsError
from kvtier.settings import (
    BreakerSettings,
    NegativeSettings,
    OriginSettings,
    RateSettings,
    ResilienceSettings,
    RetrySettings,
)
from kvtier.testing.contract import BackendContract
from kvtier.wrappers import Wrapper, wrapped
from kvtier.wrappers.breaker import BreakerBackend
from kvtier.wrappers.deadline import DeadlineBackend
from kvtier.wrappers.faults import FaultsBackend
from kvtier.wrappers.negative import NegativeBackend
from kvtier.wrappers.rate import RateBackend
from kvtier.wrappers.retry import RetryBackend

QUICK = RetrySettings(backoff_s=1e-4, backoff_max_s=1e-3)
AMPLE = RateSettings(iops=1e6, bytes_per_s=1e9)


class AroundMemory(BackendContract):
    async def wrap(self, inner: Backend) -> Backend:
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def backend(self) -> AsyncIterator[Backend]:
        backend = await self.wrap(await MemoryBackend.open({}, self.page_bytes))
        yield backend
        await backend.close()


class TestDeadline(AroundMemory):
    async def wrap(self, inner: Backend) -> Backend:
        bounds = {"read_timeout_s": 30.0, "write_timeout_s": 30.0, "late_s": 10.0}
        return await DeadlineBackend.open({"inner": inner, **bounds}, self.page_bytes)


class TestRetry(AroundMemory):
    async def wrap(self, inner: Backend) -> Backend:
        return await RetryBackend.open({"inner": inner, "rules": QUICK}, self.page_bytes)


class TestBreaker(AroundMemory):
    async def wrap(self, inner: Backend) -> Backend:
        # The suite asks for what must fail.
        rules = BreakerSettings(calls_min=1000)
        return await BreakerBackend.open({"inner": inner, "rules": rules}, self.page_bytes)


class TestNegative(AroundMemory):
    async def wrap(self, inner: Backend) -> Backend:
        rules = NegativeSettings(ttl_s=3600)
        return await NegativeBackend.open({"inner": inner, "rules": rules}, self.page_bytes)


class TestRate(AroundMemory):
    async def wrap(self, inner: Backend) -> Backend:
        return await RateBackend.open({"inner": inner, "rules": AMPLE}, self.page_bytes)


class TestFaultsWithoutFaults(AroundMemory):
    async def wrap(self, inner: Backend) -> Backend:
        return await FaultsBackend.open({"inner": inner}, self.page_bytes)


class TestAllTogetherOverSlightFaults(AroundMemory):
    """What a retry mends nobody sees."""

    async def wrap(self, inner: Backend) -> Backend:
        # A delete that raises after it was done would be ABSENT when it is tried again.
        faults = {"fail_share": 0.01, "short_share": 0.01}
        faulty = await FaultsBackend.open({"inner": inner, **faults}, self.page_bytes)
        resilience = ResilienceSettings(
            apply="always",
            deadline_s=5.0,
            retry=replace(QUICK, attempts=20, budget=10.0),
            breaker=BreakerSettings(calls_min=1000),
            negative=NegativeSettings(ttl_s=3600),
            rate=AMPLE,
        )
        origin = OriginSettings("memory", resilience=resilience)
        return wrapped(faulty, origin, self.page_bytes, seed=1, clock=WallClock()).backend


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DeadlineBackend, {}),
        (DeadlineBackend, {"inner": "memory"}),
        (DeadlineBackend, {"inner": None, "timeout_s": 1.0}),
        (RetryBackend, {}),
        (BreakerBackend, {}),
        (NegativeBackend, {}),
        (RateBackend, {}),
        (FaultsBackend, {}),
    ],
)
@pytest.mark.asyncio
async def test_wrong_options_are_refused(kind: type[Wrapper], options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        await kind.open(options, 512)


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (DeadlineBackend, "late_s", -1.0),
        (DeadlineBackend, "read_timeout_s", float("nan")),
        (FaultsBackend, "fail_share", 1.5),
        (FaultsBackend, "delay_s", -0.1),
        (RetryBackend, "rules", 3),
    ],
)
@pytest.mark.asyncio
async def test_an_option_out_of_range_is_refused(
    kind: type[Wrapper], option: str, value: object
) -> None:
    inner = await MemoryBackend.open({}, 512)
    with pytest.raises(SettingsError, match=option):
        await kind.open({"inner": inner, option: value}, 512)
    await inner.close()
