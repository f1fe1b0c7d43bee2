"""What Mooncake Store answers: error codes of its ``types.h``, as far as they make a difference."""

from __future__ import annotations

from typing import Final

ILLEGAL_CLIENT: Final = -601
"""Another client put the same value before this one had done so."""
NOT_READY: Final = -703
"""Of a value that is being written."""
NOT_FOUND: Final = -704
ALREADY_EXISTS: Final = -705
HAS_LEASE: Final = -706
"""Of a value that somebody may be reading: it cannot be removed before its lease ends."""
LEASE_EXPIRED: Final = -707
HAS_COPY_TASK: Final = -708
REPLICA_BUSY: Final = -714

BUSY: Final = frozenset({ILLEGAL_CLIENT, NOT_READY, ALREADY_EXISTS, HAS_COPY_TASK, REPLICA_BUSY})
"""Of a value that another client works on: worth another try."""

NO_MASTER: Final = frozenset({-900, -901})
"""The master could not be called, or did not answer in time."""
