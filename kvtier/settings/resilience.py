"""How a cache treats an origin that is slow, fails or is gone, and what must hold of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from kvtier.settings.problems import COUNT_MAX, Problem, given_outside
from kvtier.units import format_rate, format_seconds

Applies = Literal["remote", "always", "never"]

_SECONDS_MAX: Final = 3600.0


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """Failed items are asked for again, after a random pause that grows.

    Attributes:
        attempts: of one call, the first one included; 1 never asks again.
        backoff_s: the first pause is a random share of it; it doubles with every attempt.
        backoff_max_s: but is never more than this.
        total_s: no attempt begins later than this after the first one.
        budget: retries per call that are saved up, so that a dead origin sees little more load.
    """

    attempts: int = 3
    backoff_s: float = 0.01
    backoff_max_s: float = 1.0
    total_s: float = 5.0
    budget: float = 0.1


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """An origin that fails is left alone for a while.

    Attributes:
        failure_share: the breaker opens when so many of the calls in ``window_s`` failed,
        calls_min: of so many at least.
        window_s: how far back calls count.
        slow_s: a call that takes longer counts as failed; None: the deadline of reads, if any.
        open_s: how long it stays open before it lets a call through to try; 0: no breaker.
        probes: such calls that must be answered before it closes, and how many go at once.
    """

    failure_share: float = 0.5
    calls_min: int = 8
    window_s: float = 10.0
    slow_s: float | None = None
    open_s: float = 5.0
    probes: int = 1


@dataclass(frozen=True, slots=True)
class NegativeSettings:
    """Keys that the origin does not have are remembered.

    Attributes:
        ttl_s: for so long; 0: not at all.
        keys_max: so many at most.
    """

    ttl_s: float = 0.0
    keys_max: int = 1 << 16


@dataclass(frozen=True, slots=True)
class RateSettings:
    """How much the origin is asked at most.

    Attributes:
        iops: extents, objects and keys per second; None: no limit.
        bytes_per_s: of reads and writes together; None: no limit.
        burst_s: after a pause, what comes in so long may go at once.
        waiting_max: calls that wait for their turn; more are refused at once.
    """

    iops: float | None = None
    bytes_per_s: float | None = None
    burst_s: float = 0.1
    waiting_max: int = 1024


@dataclass(frozen=True, slots=True)
class ResilienceSettings:
    """What stands between a cache and its origin; :mod:`kvtier.wrappers` does the work.

    Attributes:
        apply: around which origins: those that say they are ``remote``, ``always``, or ``never``.
        deadline_s: how long a read of the cache waits that names no deadline of its own. What is
            not there by then is LATE, and still fills the tiers. None: no deadline.
        read_timeout_s: a read or stat of the origin that takes longer has failed; 0: no bound.
        write_timeout_s: the same of a put or delete.
        late_max: reads of the origin that may go on beyond ``deadline_s`` at once; the others fail
            then, so that they do not keep memory that the tiers need.
        retry, breaker, negative, rate: see there.
    """

    apply: Applies = "remote"
    deadline_s: float | None = None
    read_timeout_s: float = 10.0
    write_timeout_s: float = 60.0
    late_max: int = 16
    retry: RetrySettings = RetrySettings()
    breaker: BreakerSettings = BreakerSettings()
    negative: NegativeSettings = NegativeSettings()
    rate: RateSettings = RateSettings()


def resilience_problems(prefix: str, resilience: ResilienceSettings) -> Iterator[Problem]:
    """Dotted keys that are out of range, each with a sentence that begins with it."""
    retry, breaker = resilience.retry, resilience.breaker
    negative, rate = resilience.negative, resilience.rate
    seconds: list[tuple[str, float | None, float]] = [
        ("deadline", resilience.deadline_s, 1e-6),
        ("read_timeout", resilience.read_timeout_s, 0),
        ("write_timeout", resilience.write_timeout_s, 0),
        ("retry.backoff", retry.backoff_s, 0),
        ("retry.backoff_max", retry.backoff_max_s, retry.backoff_s),
        ("retry.total", retry.total_s, 0),
        ("breaker.window", breaker.window_s, 1e-3),
        ("breaker.slow", breaker.slow_s, 1e-6),
        ("breaker.open", breaker.open_s, 0),
        ("negative.ttl", negative.ttl_s, 0),
        ("rate.burst", rate.burst_s, 1e-6),
    ]
    for key, value, low in seconds:
        yield from given_outside(f"{prefix}.{key}", value, low, _SECONDS_MAX, format_seconds)
    numbers: list[tuple[str, float | None, float, float]] = [
        ("late_max", resilience.late_max, 0, COUNT_MAX),
        ("retry.attempts", retry.attempts, 1, 100),
        ("retry.budget", retry.budget, 0, 100),
        ("breaker.failure_share", breaker.failure_share, 0.01, 1),
        ("breaker.calls_min", breaker.calls_min, 1, COUNT_MAX),
        ("breaker.probes", breaker.probes, 1, 1000),
        ("negative.keys_max", negative.keys_max, 1, COUNT_MAX),
        ("rate.iops", rate.iops, 1e-3, 1e15),
        ("rate.waiting_max", rate.waiting_max, 1, COUNT_MAX),
    ]
    for key, value, low, high in numbers:
        yield from given_outside(f"{prefix}.{key}", value, low, high)
    yield from given_outside(f"{prefix}.rate.bandwidth", rate.bytes_per_s, 1, 1e18, format_rate)
    yield from _unfitting(prefix, resilience)


def _unfitting(prefix: str, resilience: ResilienceSettings) -> Iterator[Problem]:
    """What makes no sense beside each other."""
    deadline_s, timeout_s = resilience.deadline_s, resilience.read_timeout_s
    if deadline_s is not None and 0 < timeout_s <= deadline_s:
        yield Problem(
            f"{prefix}.deadline",
            f"{prefix}.deadline is {format_seconds(deadline_s)}: it must be less than "
            f"{prefix}.read_timeout = {format_seconds(timeout_s)}, or no late page could fill",
        )
    rate, plain = resilience.rate, RateSettings()
    if rate.iops is None and rate.bytes_per_s is None:
        for name, is_given in (
            ("burst", rate.burst_s != plain.burst_s),
            ("waiting_max", rate.waiting_max != plain.waiting_max),
        ):
            if is_given:
                key = f"{prefix}.rate.{name}"
                sentence = f"{key} is of a rate limit: give {prefix}.rate.iops or .bandwidth too"
                yield Problem(key, sentence)
