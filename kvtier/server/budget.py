"""The memory that all connections of a server share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Budget:
    """Bytes that may be held at once. Who finds no room waits in line, first come, first served.

    One that asks for more than there is gets it when nothing else is held.

    Args:
        bytes_max: bytes there are.

    Attributes:
        held_bytes: those that are taken.
    """

    def __init__(self, bytes_max: int) -> None:
        self.held_bytes = 0
        self._bytes_max = bytes_max
        self._line: deque[tuple[int, Callable[[], None]]] = deque()

    def take(self, size_bytes: int, granted: Callable[[], None]) -> bool:
        """Take bytes now, if nobody waits and there is room; else stand in line.

        Args:
            size_bytes: how many.
            granted: called when they were taken later on; never before this returned.

        Returns:
            Whether they were taken at once.
        """
        if self.has_room(size_bytes):
            self.held_bytes += size_bytes
            return True
        self._line.append((size_bytes, granted))
        return False

    def has_room(self, size_bytes: int) -> bool:
        """Whether bytes could be taken now: there is room, and nobody waits for it."""
        return not self._line and self._fits(size_bytes)

    def take_anyway(self, size_bytes: int) -> None:
        """Take bytes whether there is room or not: for little things that must not wait."""
        self.held_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """Give bytes back; whoever waits and fits now is told."""
        self.held_bytes -= size_bytes
        self._serve()

    def leave(self, granted: Callable[[], None]) -> None:
        """Leave the line, if one stands in it."""
        self._line = deque(place for place in self._line if place[1] != granted)
        self._serve()

    def _serve(self) -> None:
        while self._line and self._fits(self._line[0][0]):
            size_bytes, granted = self._line.popleft()
            self.held_bytes += size_bytes
            granted()

    def _fits(self, size_bytes: int) -> bool:
        return self.held_bytes == 0 or self.held_bytes + size_bytes <= self._bytes_max
