"""Settings of what stands between a cache and its origin."""

from __future__ import annotations

import pytest

from kvtier.errors import SettingsError
from kvtier.settings import (
    BreakerSettings,
    NegativeSettings,
    RateSettings,
    ResilienceSettings,
    RetrySettings,
    load_settings,
)


def resilience(*overrides: str) -> ResilienceSettings:
    settings = load_settings(None, [f"origin.resilience.{text}" for text in overrides])
    assert settings.origin is not None
    return settings.origin.resilience


def test_what_is_not_said_has_its_default() -> None:
    assert resilience() == ResilienceSettings()


def test_every_key_can_be_said_with_its_unit() -> None:
    assert resilience(
        "apply=always",
        "deadline=200 ms",
        "read_timeout=3 s",
        "write_timeout=0 s",
        "late_max=7",
        "retry={ attempts = 5, backoff = '1 ms', backoff_max = '9 ms', total = '1 s', budget = 1 }",
        "breaker.failure_share=0.25",
        "breaker.calls_min=3",
        "breaker.window=4 s",
        "breaker.slow=100 ms",
        "breaker.open=2 s",
        "breaker.probes=2",
        "negative.ttl=1 s",
        "negative.keys_max=10",
        "rate.iops=1000",
        "rate.bandwidth=1 GB/s",
        "rate.burst=10 ms",
        "rate.waiting_max=5",
    ) == ResilienceSettings(
        apply="always",
        deadline_s=0.2,
        read_timeout_s=3.0,
        write_timeout_s=0.0,
        late_max=7,
        retry=RetrySettings(5, 0.001, 0.009, 1.0, 1.0),
        breaker=BreakerSettings(0.25, 3, 4.0, 0.1, 2.0, 2),
        negative=NegativeSettings(1.0, 10),
        rate=RateSettings(1000.0, 1e9, 0.01, 5),
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("apply=sometimes", "origin.resilience.apply is 'sometimes': it must be one of remote"),
        ("deadline=0 s", "origin.resilience.deadline is 0 ns: it must be from 1 us to 60 min"),
        ("deadline=20 s", "origin.resilience.deadline is 20 s: it must be less than origin.resili"),
        ("deadline=3", "origin.resilience.deadline: 3 is no time; write e.g. '80 us'"),
        ("read_timeout=2 h", "origin.resilience.read_timeout"),
        ("late_max=-1", "origin.resilience.late_max is -1: it must be from 0"),
        ("retry.attempts=0", "origin.resilience.retry.attempts is 0: it must be from 1 to 100"),
        ("retry.backoff_max=1 ms", "origin.resilience.retry.backoff_max is 1 ms: it must be from"),
        ("retry.budget=nan", "origin.resilience.retry.budget is nan"),
        ("breaker.failure_share=2", "origin.resilience.breaker.failure_share is 2"),
        ("breaker.calls_min=0", "origin.resilience.breaker.calls_min is 0"),
        ("breaker.window=0 s", "origin.resilience.breaker.window is 0 ns"),
        ("breaker.probes=0", "origin.resilience.breaker.probes is 0"),
        ("breaker.opne=1 s", "did you mean origin.resilience.breaker.open?"),
        ("negative.keys_max=0", "origin.resilience.negative.keys_max is 0"),
        ("rate.iops=0", "origin.resilience.rate.iops is 0"),
        ("rate.bandwidth=0 B/s", "origin.resilience.rate.bandwidth is 0"),
        ("rate.burst=0 s", "origin.resilience.rate.burst is 0 ns"),
        ("rate.waiting_max=0", "origin.resilience.rate.waiting_max is 0"),
        ("retry=3", "origin.resilience.retry is 3: it must be a table"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_by_its_key(override: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resilience(override)
    assert message in str(caught.value)
    assert str(caught.value).startswith("--set: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["burst=1 s", "waiting_max=3"])
def test_a_rate_limit_that_limits_nothing_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match=r"is of a rate limit: give .*rate\.iops"):
        resilience(f"rate.{key}")
    resilience(f"rate.{key}", "rate.bandwidth=1 GB/s")
