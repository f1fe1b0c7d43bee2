"""The read-through state machine: decides, never awaits, never touches a byte of payload."""

from kvtier.chain.actions import (
    Abort,
    Action,
    Complete,
    Copy,
    Fetch,
    Fill,
    Invalidate,
    Lookup,
    Move,
    Publish,
)
from kvtier.chain.build import build_chain
from kvtier.chain.counters import Counters, LevelCounters, total
from kvtier.chain.driver import ChainDriver
from kvtier.chain.extents import Extents
from kvtier.chain.flight import Flight, Read, Write
from kvtier.chain.level import Level
from kvtier.chain.machine import Chain

__all__ = [
    "Abort",
    "Action",
    "Chain",
    "ChainDriver",
    "Complete",
    "Copy",
    "Counters",
    "Extents",
    "Fetch",
    "Fill",
    "Flight",
    "Invalidate",
    "Level",
    "LevelCounters",
    "Lookup",
    "Move",
    "Publish",
    "Read",
    "Write",
    "build_chain",
    "total",
]
