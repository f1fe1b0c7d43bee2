"""The wrappers that settings ask for."""

from __future__ import annotations

from kvtier.backend import Backend
from kvtier.clock import Clock
from kvtier.settings import OriginSettings
from kvtier.wrappers.wrapper import Wrapper


def wrapped(
    backend: Backend, origin: OriginSettings, page_bytes: int, *, seed: int, clock: Clock
) -> Wrapper | None:
    """The wrapper around ``backend`` that ``origin`` describes, or None where it asks for none."""
    if origin.latency is None:
        return None
    # The emulator is not imported before somebody asks for one of its devices.
    from kvtier.wrappers.latency import LatencyBackend  # noqa: PLC0415

    return LatencyBackend(backend, origin.latency, page_bytes, seed=seed, clock=clock)
