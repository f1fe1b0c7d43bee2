"""The batches that are open: each has an epoch from its beginning, and is counted at its end."""

from __future__ import annotations

import numpy as np

from kvtier.chain.actions import Action, Complete
from kvtier.chain.counters import no_counts
from kvtier.chain.epochs import Epochs
from kvtier.chain.flight import UNRESOLVED, Read, Write
from kvtier.pages import I64, U64, PageStatus, Purpose


class Batches:
    """Begins reads and writes, answers rows of reads, and completes both.

    Args:
        levels: of the chain.

    Attributes:
        epochs: the order of batches.
        by_purpose: what the batches counted.
        open: batches that are not complete.
    """

    def __init__(self, levels: int) -> None:
        self.epochs = Epochs()
        self.by_purpose = {purpose: no_counts(levels) for purpose in Purpose}
        self.open = 0
        self._levels = levels

    def begin_read(
        self,
        page_ids: U64,
        *,
        wants_bytes: bool,
        held: bool,
        purpose: Purpose,
        origin_shut: bool,
        writes_shut: bool,
    ) -> Read:
        """A batch of demand reads; arguments as of :meth:`kvtier.chain.Chain.read`."""
        self.open += 1
        return Read(
            epoch=self.epochs.begin(),
            page_ids=page_ids,
            purpose=purpose,
            counters=self.by_purpose[purpose],
            status=np.full(len(page_ids), UNRESOLVED, np.uint8),
            wants_bytes=wants_bytes,
            held=held,
            unresolved=len(page_ids),
            lookups=[0] * self._levels,
            hits=[0] * self._levels,
            origin_shut=origin_shut,
            writes_shut=writes_shut,
        )

    def begin_write(self, page_ids: U64, objects: int, *, writes_shut: bool) -> Write:
        """A batch of whole objects; arguments as of :meth:`kvtier.chain.Chain.write`."""
        self.open += 1
        counters = self.by_purpose[Purpose.UNSTATED]
        return Write(self.epochs.begin(), page_ids, objects, counters, writes_shut)

    def resolve(self, read: Read, rows: I64 | None, status: PageStatus) -> list[Action]:
        """Answer rows (i64[m]; None: all) of a read, which is complete after the last of them."""
        read.status[slice(None) if rows is None else rows] = status
        read.unresolved -= len(read.page_ids) if rows is None else len(rows)
        return self.complete_read(read) if read.unresolved == 0 else []

    def end_step(self, write: Write) -> list[Action]:
        """A lookup, fill or move of a write has ended; the write is complete after the last."""
        write.steps -= 1
        return self.complete_write(write) if write.steps == 0 else []

    def complete_read(self, read: Read) -> list[Action]:
        """End a read of which every row is answered; if it is held, its epoch goes on."""
        read.count()
        self.open -= 1
        if not read.held:
            self.epochs.let_go(read.epoch)
        return [Complete(read)]

    def complete_write(self, write: Write) -> list[Action]:
        """End a write that no tier has still to answer."""
        write.counters.written_objects += write.objects
        write.counters.written_pages += len(write.page_ids)
        self.open -= 1
        self.epochs.let_go(write.epoch)
        return [Complete(write)]
