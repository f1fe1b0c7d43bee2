"""Epochs: the order of batches, and which of them still protect the slots that they touched."""

from __future__ import annotations


class Epochs:
    """Counts batches, and who holds each: its read or write, its flights, a lease.

    Attributes:
        newest: the epoch of the latest batch; the first is 1.
    """

    def __init__(self) -> None:
        self.newest = 0
        self._holders: dict[int, int] = {}
        """Holders of each epoch that is not released; ascending, for epochs are begun in order."""

    def __len__(self) -> int:
        return len(self._holders)

    @property
    def oldest(self) -> int:
        """The oldest epoch that is not released; there must be one."""
        return next(iter(self._holders))

    def begin(self) -> int:
        """A new epoch, held once."""
        self.newest += 1
        self._holders[self.newest] = 1
        return self.newest

    def hold(self, epoch: int) -> None:
        """Hold an epoch once more that is held already."""
        self._holders[epoch] += 1

    def let_go(self, epoch: int) -> None:
        """End one hold; the last one releases the epoch."""
        self._holders[epoch] -= 1
        if self._holders[epoch] == 0:
            del self._holders[epoch]
