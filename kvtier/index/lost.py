"""The index of a tier whose pages cannot be reached any more."""

from __future__ import annotations

from typing import Final

import numpy as np

from kvtier.folding import leaders_of, number_leaders
from kvtier.pages import I64, NO_MISSES, U32, U64, Bool, LookupResult, Misses

_NO_SLOTS: Final = np.empty(0, np.int64)


class LostIndex:
    """Every page is missing and no slot is given: the part of a page index that a chain needs.

    See :class:`kvtier.index.interface.PageIndex`. What was reserved before may still be published
    or aborted; it stays missing.
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
        if len(page_ids) == 0:
            return LookupResult(_NO_SLOTS, None, NO_MISSES, NO_MISSES.page_ids, 0)
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
