"""For which requests a task reads and writes, whatever lies between it and the chain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Owners:
    """The requests for which a batch is read or written.

    Attributes:
        requests: their numbers.
        pages: of each, in the order of a batch of reads.
        goes_on: the last of them waits for pages of the next batch as well.
    """

    requests: Sequence[int] = ()
    pages: Sequence[int] = ()
    goes_on: bool = False


_NOBODY: Final = Owners()
_owners: ContextVar[Owners] = ContextVar("owners", default=_NOBODY)


@contextmanager
def owned_by(owners: Owners) -> Iterator[None]:
    """What this task reads and writes meanwhile is logged as for these requests."""
    token = _owners.set(owners)
    try:
        yield
    finally:
        _owners.reset(token)


def present_owners() -> Owners:
    """The requests for which this task works now; nobody by default."""
    return _owners.get()
