"""The wrappers that settings ask for, one around the other.

From the outside: negative cache, retry, rate limit, breaker, deadline, modelled latency, store.
What is known to be missing asks nobody. Every attempt of a retry passes the rate limit and is
judged by the breaker, and an open breaker ends the attempts. Waiting for the rate limit is no
fault of the store, so it is outside the breaker and the deadline. The latency stands for the
store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kvtier.backend import Backend
from kvtier.clock import Clock
from kvtier.settings import OriginSettings, ResilienceSettings
from kvtier.wrappers.breaker import BreakerBackend
from kvtier.wrappers.deadline import DeadlineBackend
from kvtier.wrappers.negative import NegativeBackend
from kvtier.wrappers.rate import RateBackend
from kvtier.wrappers.retry import RetryBackend
from kvtier.wrappers.wrapper import Wrapper


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A backend, and the wrappers around it.

    Attributes:
        backend: the outermost wrapper, or the backend itself where there is none.
        wrappers: from the outside; empty where the settings ask for none.
        deadline_s: how long a read of a cache over it waits, unless it says so itself.
    """

    backend: Backend
    wrappers: tuple[Wrapper, ...]
    deadline_s: float | None

    async def release(self) -> None:
        """Let go of what the wrappers hold; the backend inside stays open."""
        for wrapper in self.wrappers:
            await wrapper.release()


def wrapped(
    backend: Backend, origin: OriginSettings, page_bytes: int, *, seed: int, clock: Clock
) -> Wrapped:
    """``backend`` with the wrappers that ``origin`` describes around it."""
    inside: list[Wrapper] = []
    if origin.latency is not None:
        # The emulator is not imported before somebody asks for one of its devices.
        from kvtier.wrappers.latency import LatencyBackend  # noqa: PLC0415

        backend = LatencyBackend(backend, origin.latency, page_bytes, seed=seed, clock=clock)
        inside.append(backend)
    rules = origin.resilience
    if rules.apply == "never" or (rules.apply == "remote" and not backend.capability.remote):
        return Wrapped(backend, tuple(inside), None)
    for wrapper in _resilient(backend, rules, page_bytes, seed=seed, clock=clock):
        backend = wrapper
        inside.append(wrapper)
    return Wrapped(backend, tuple(reversed(inside)), rules.deadline_s)


def _resilient(
    backend: Backend, rules: ResilienceSettings, page_bytes: int, *, seed: int, clock: Clock
) -> list[Wrapper]:
    """The wrappers of ``rules``, from the inside."""
    layers: list[Wrapper] = []

    def add(wrapper: Wrapper) -> None:
        nonlocal backend
        backend = wrapper
        layers.append(wrapper)

    add(
        DeadlineBackend(
            backend,
            read_timeout_s=rules.read_timeout_s or None,
            write_timeout_s=rules.write_timeout_s or None,
            late_s=rules.deadline_s,
            late_max=rules.late_max,
        )
    )
    if rules.breaker.open_s:
        slow_s = rules.deadline_s if rules.breaker.slow_s is None else rules.breaker.slow_s
        add(BreakerBackend(backend, replace(rules.breaker, slow_s=slow_s), clock=clock))
    if rules.rate.iops is not None or rules.rate.bytes_per_s is not None:
        add(RateBackend(backend, rules.rate, page_bytes, clock=clock))
    if rules.retry.attempts > 1:
        add(RetryBackend(backend, rules.retry, seed=seed, clock=clock))
    if rules.negative.ttl_s:
        add(NegativeBackend(backend, rules.negative, clock=clock))
    return layers


def counts_of(backend: object) -> Mapping[str, Mapping[str, int]] | None:
    """What each wrapper of a backend did, from the outside, by its name; None if none counts."""
    found: dict[str, Mapping[str, int]] = {}
    while isinstance(backend, Wrapper):
        if counts := backend.counts():
            found[backend.name] = counts
        backend = backend.inner
    return found or None
