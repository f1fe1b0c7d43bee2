"""The index of a tier whose pages may become unreachable, and of one where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np

from kvtier.errors import DeviceLostError
from kvtier.folding import leaders_of, number_leaders
from kvtier.index.interface import PageIndex
from kvtier.pages import I64, NO_MISSES, U32, U64, Bool, LookupResult, Misses, all_hit

_NO_SLOTS: Final = np.empty(0, np.int64)

Answer = TypeVar("Answer")


class LosableIndex:
    """An index on a device that may fail: from then on it is a :class:`LostIndex`.

    Args:
        index: asked as long as it answers.
        on_loss: is told of the failure, once, before the call goes on.
    """

    def __init__(self, index: PageIndex, on_loss: Callable[[DeviceLostError], None]) -> None:
        self._index: PageIndex | LostIndex = index
        self._on_loss = on_loss

    def lose(self) -> None:
        """Ask the device nothing more."""
        self._index = LostIndex()

    def lookup(self, page_ids: U64, epoch: int, oldest_epoch: int, **hints: Any) -> LookupResult:
        """See :meth:`PageIndex.lookup`.

        Raises:
            DeviceLostError: ``page_ids`` lie on the device that has failed.
        """
        return self._ask(lambda index: index.lookup(page_ids, epoch, oldest_epoch, **hints))

    def publish(self, slots: I64) -> None:
        """See :meth:`PageIndex.publish`."""
        self._ask(lambda index: index.publish(slots))

    def abort(self, slots: I64) -> None:
        """See :meth:`PageIndex.abort`."""
        self._ask(lambda index: index.abort(slots))

    def invalidate(self, page_ids: U64) -> I64:
        """See :meth:`PageIndex.invalidate`."""
        return self._ask(lambda index: index.invalidate(page_ids))

    def peek(self, page_ids: U64) -> I64:
        """See :meth:`PageIndex.peek`."""
        return self._ask(lambda index: index.peek(page_ids))

    def _ask(self, question: Callable[[PageIndex | LostIndex], Answer]) -> Answer:
        if isinstance(self._index, LostIndex):
            return question(self._index)
        try:
            return question(self._index)
        except DeviceLostError as error:
            self.lose()
            self._on_loss(error)
        return question(self._index)


class LostIndex:
    """Every page is missing and no slot is given.

    What was reserved before may still be published or aborted; it stays missing.
    """

    def lookup(
        self,
        page_ids: U64,
        epoch: int,  # noqa: ARG002 -- the interface of every index
        oldest_epoch: int,  # noqa: ARG002
        *,
        admit: Bool | None = None,  # noqa: ARG002
        priorities: U32 | None = None,  # noqa: ARG002
    ) -> LookupResult:
        if not isinstance(page_ids, np.ndarray):
            raise DeviceLostError("the page ids were lost with the GPU")
        if len(page_ids) == 0:
            return all_hit(_NO_SLOTS)
        leads, page_of = number_leaders(leaders_of(page_ids))
        missing = page_ids[leads]
        misses = Misses(
            rows=np.arange(len(page_ids)),
            leads=leads,
            page_of=page_of,
            page_ids=missing,
            states=np.zeros(len(missing), np.uint8),
            slots=np.full(len(missing), -1, np.int64),
        )
        return LookupResult(_NO_SLOTS, _NO_SLOTS, misses, NO_MISSES.page_ids, 0)

    def publish(self, slots: I64) -> None:
        pass

    def abort(self, slots: I64) -> None:
        pass

    def invalidate(self, page_ids: U64) -> I64:  # noqa: ARG002
        return np.empty(0, np.int64)

    def peek(self, page_ids: U64) -> I64:
        return np.full(len(page_ids), -1, np.int64)
