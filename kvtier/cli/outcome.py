"""How a command ends: its exit code, and one line about what went wrong."""

from __future__ import annotations

import sys
from enum import IntEnum


class Exit(IntEnum):
    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    """Nothing was begun."""
    INTERRUPTED = 130
    """By Ctrl-C, with what was measured until then; 128 and SIGINT, as shells count it."""


def complain(sentence: str) -> None:
    """One line on the standard error."""
    sys.stderr.write(f"kvtier: {' '.join(sentence.split())}\n")
    sys.stderr.flush()
