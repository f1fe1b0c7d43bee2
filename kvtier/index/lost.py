"""The index of a tier whose pages cannot be reached any more."""

from __future__ import annotations

import numpy as np

from kvtier.pages import I64, U32, U64, Bool, LookupResult


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
            return LookupResult(
                np.empty(0, np.uint8), np.empty(0, np.int64), None, np.empty(0, np.uint64), 0
            )
        _, first, inverse = np.unique(page_ids, return_index=True, return_inverse=True)
        return LookupResult(
            states=np.zeros(len(page_ids), np.uint8),
            slots=np.full(len(page_ids), -1, np.int64),
            leaders=first[inverse].astype(np.int64),
            evicted=np.empty(0, np.uint64),
            bypasses=0,
        )

    def publish(self, slots: I64) -> None:
        pass

    def abort(self, slots: I64) -> None:
        pass

    def invalidate(self, page_ids: U64) -> I64:  # noqa: ARG002
        return np.empty(0, np.int64)

    def peek(self, page_ids: U64) -> I64:
        return np.full(len(page_ids), -1, np.int64)
