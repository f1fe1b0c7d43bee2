"""How much is asked of Mooncake at once.

Its TCP transport queues 1,024 transfers per host and fails what goes beyond, and a lease of default
length must outlast the reading of what one call asks for.
"""

from __future__ import annotations

from typing import Final

THREADS_MAX: Final = 12

VALUES_AT_ONCE: Final = 64
"""Whole values that one call of one thread transfers: with all threads, less than the queue."""

RANGES_AT_ONCE: Final = 1024
"""Extents of one call; Mooncake feeds their ranges to its queue bit by bit."""

NAMES_AT_ONCE: Final = 4096
"""Names that one call asks the master for, without a transfer."""
