"""A store that fails is left alone for a while: calls to it fail at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from kvtier.backend import (
    Backend,
    ExtentBatch,
    ObjectBatch,
    ObjectStats,
    PutResult,
    check_options,
)
from kvtier.clock import Clock, WallClock
from kvtier.errors import ClosedError, LimitError, UnavailableError
from kvtier.pages import U8
from kvtier.settings import BreakerSettings
from kvtier.wrappers.answers import failed_items
from kvtier.wrappers.circuit import Circuit, Outcome
from kvtier.wrappers.wrapper import Wrapper

T = TypeVar("T")

_OPTIONS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "inner": Backend,
    "rules": BreakerSettings,
}


class BreakerBackend(Wrapper):
    """Raises UnavailableError while its circuit is open, and is not ``available`` then.

    A call has failed if it raised anything but LimitError and ClosedError, if every one of its
    items FAILED, or if it was too slow. ``keys`` goes through unwatched.

    Options:
        inner: an open backend, which is closed with this one.
        rules: when it opens, and for how long.

    Attributes:
        circuit: its state.
    """

    name: ClassVar[str] = "breaker"

    def __init__(
        self, inner: Backend, rules: BreakerSettings, *, clock: Clock | None = None
    ) -> None:
        super().__init__(inner)
        self.circuit = Circuit(rules, clock or WallClock())

    @classmethod
    async def open(cls, options: Mapping[str, Any], page_bytes: int) -> BreakerBackend:  # noqa: ARG003
        check_options(options, _OPTIONS, cls.name, required=("inner",))
        return cls(options["inner"], options.get("rules", BreakerSettings()))

    @property
    def available(self) -> bool:
        return self.circuit.lets_through and self.inner.available

    def counts(self) -> Mapping[str, int]:
        """How often it ``opened``; calls ``rejected``, ``failures``, and ``slow`` ones of these."""
        circuit = self.circuit
        return {
            "opened": circuit.opened,
            "rejected": circuit.rejected,
            "failures": circuit.failures,
            "slow": circuit.slow,
        }

    async def stat(self, keys: Sequence[bytes]) -> ObjectStats:
        return await self._watch(lambda: self.inner.stat(keys), lambda _: False)

    async def read(self, batch: ExtentBatch, out: U8) -> U8:
        return await self._watch(lambda: self.inner.read(batch, out), _all_failed)

    async def put(self, batch: ObjectBatch) -> PutResult:
        return await self._watch(
            lambda: self.inner.put(batch), lambda result: _all_failed(result.status)
        )

    async def delete(self, keys: Sequence[bytes]) -> U8:
        return await self._watch(lambda: self.inner.delete(keys), _all_failed)

    async def _watch(self, call: Callable[[], Awaitable[T]], has_failed: Callable[[T], bool]) -> T:
        number = self.circuit.begin()
        if number is None:
            raise UnavailableError("the store failed too often: it is left alone for a while")
        outcome = Outcome.LEFT
        try:
            answer = await call()
            outcome = Outcome.FAILED if has_failed(answer) else Outcome.ANSWERED
        except (LimitError, ClosedError):
            raise
        except Exception:
            outcome = Outcome.FAILED
            raise
        finally:
            self.circuit.end(number, outcome)
        return answer


def _all_failed(status: U8) -> bool:
    return len(status) > 0 and bool(failed_items(status).all())
