"""Why files cannot be read or written: statuses of a batch do not say."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

AGAIN_S: Final = 60.0
"""How long the same failure is not said again: a full disk fails every object."""


class Failures:
    """Logs what the threads of one store meet.

    Args:
        folder: where its objects are, for the message.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._said: dict[tuple[str, int | None], float] = {}

    def note(self, what: str, error: OSError) -> None:
        """Say that an object could not be read, written or removed."""
        now = time.monotonic()
        kind = what, error.errno
        if now - self._said.get(kind, -AGAIN_S) >= AGAIN_S:
            self._said[kind] = now
            reason = error.strerror or str(error)
            logger.warning("%s: an object cannot be %s: %s", self._folder, what, reason)
