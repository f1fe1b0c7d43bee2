"""Event logs: what a replay told its chain, in order, so that a simulation can repeat it.

A chain's decisions depend on what it is told and on nothing else. :class:`RecordingChain` logs it,
:func:`open_event_log` writes it, and :func:`read_event_log` reads it for
:class:`kvtier.emulator.RepeatingDriver`.
"""

from kvtier.events.header import LogHeader, deciding_settings
from kvtier.events.owners import Owners, owned_by
from kvtier.events.reader import Event, LoggedRun, read_event_log, read_summary
from kvtier.events.recording import RecordingChain
from kvtier.events.schema import EventKind, Flag
from kvtier.events.writer import EventLog, open_event_log

__all__ = [
    "Event",
    "EventKind",
    "EventLog",
    "Flag",
    "LogHeader",
    "LoggedRun",
    "Owners",
    "RecordingChain",
    "deciding_settings",
    "open_event_log",
    "owned_by",
    "read_event_log",
    "read_summary",
]
