"""Leases: pages of the first tier that stay where they are."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from kvtier.chain import Chain, Read
from kvtier.pages import I64

logger = logging.getLogger(__name__)

OVERDUE_S: Final = 30.0
"""A lease held longer is reported; its slots stay quarantined."""


class Lease:
    """Pages of the first tier that stay where they are until :meth:`release`.

    On a GPU, read them within :meth:`kvtier.tiers.CudaTier.reading`; they may be released as soon
    as their last reader is enqueued.

    Attributes:
        slots: i64[n], the slot of each page in the first tier, -1 where it is not there
            (bypassed, not admitted, absent or failed). On the GPU if the page ids are there.
    """

    def __init__(self, chain: Chain, read: Read, slots: I64) -> None:
        self.slots = slots
        self._chain = chain
        self._read = read
        self._alarm = asyncio.get_running_loop().call_later(OVERDUE_S, self._report)

    def release(self) -> None:
        """Let the slots be reused; a second call does nothing."""
        self._alarm.cancel()
        self._chain.release(self._read)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _report(self) -> None:
        logger.warning(
            "a lease of %d pages is overdue after %g s: its slots cannot be reused until released",
            len(self.slots),
            OVERDUE_S,
        )
