"""What an event log says of the run that it logs, and whether a run can repeat it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from kvtier.errors import SettingsError, TraceError
from kvtier.settings import Settings
from kvtier.settings.keys import toml_key

VERSION: Final = 2

_TIER: Final = (
    "capacity_bytes",
    "ways",
    "admit",
    "write",
    "write_limit_bytes_per_s",
    "merge_gap_pages",
    "extent_pages_max",
    "segment_bytes",
)
_ORIGIN: Final = ("write", "merge_gap_pages", "extent_pages_max")
_REPLAY: Final = ("drive", "concurrency", "compute_s", "speed")


@dataclass(frozen=True, slots=True)
class LogHeader:
    """What a log says of its run.

    Attributes:
        log_id: its name, in hexadecimal; results of the same log decide alike.
        trace: facts of the trace, by which it is known again.
        settings: those that decisions depend on, by their dotted keys.
        origin_extent_pages_max, origin_batch_extents_max: what its backend takes in one read.
    """

    log_id: str
    trace: Mapping[str, Any]
    settings: Mapping[str, Any]
    origin_extent_pages_max: int
    origin_batch_extents_max: int

    def check_trace(self, log: Path, path: Path, trace: Mapping[str, Any]) -> None:
        """Make sure that a trace is the one that was logged.

        Raises:
            TraceError: it is another, or another part of it.
        """
        for name, value in trace.items():
            logged = self.trace.get(name)
            if logged != value:
                raise TraceError(
                    f"{path}: is not the trace of {log}: its {name} is {value}, the logged one "
                    f"{logged}; give the trace, --limit and --pages-per-block of the replay"
                )

    def check_settings(self, log: Path, settings: Settings) -> None:
        """Make sure that a run would decide as the logged one.

        Raises:
            SettingsError: a setting is another.
        """
        present = deciding_settings(settings)
        for key in dict.fromkeys((*self.settings, *present)):
            then, now = self.settings.get(key), present.get(key)
            if then != now:
                raise SettingsError(
                    f"{log}: {key} was {_shown(then)} when it was logged, and is {_shown(now)} "
                    "now: give the settings of the replay"
                )


def deciding_settings(settings: Settings) -> dict[str, Any]:
    """The settings on which decisions depend, by their dotted keys."""
    found: dict[str, Any] = {"page_bytes": settings.page_bytes, "seed": settings.seed}
    for tier in settings.tiers:
        found |= _fields(f"tiers.{tier.name}", tier, _TIER)
    if settings.origin is not None:
        found |= _fields("origin", settings.origin, _ORIGIN)
    chain = settings.chain
    found |= _fields("chain", chain, [field.name for field in fields(chain)])
    return found | _fields("replay", settings.replay, _REPLAY)


def encode_header(header: LogHeader) -> bytes:
    """The JSON form."""
    return json.dumps({"version": VERSION, **asdict(header)}).encode()


def decode_header(encoded: bytes) -> LogHeader:
    """The inverse of :func:`encode_header`. Raises TraceError for what it does not give."""
    try:
        found = json.loads(encoded)
    except ValueError as error:
        raise TraceError("its header is no JSON; log the run again") from error
    if not isinstance(found, dict) or found.pop("version", None) != VERSION:
        raise TraceError(f"is no event log of version {VERSION}; log the run again")
    kinds = {"log_id": str, "trace": dict, "settings": dict}
    for field in fields(LogHeader):
        if type(found.get(field.name)) is not kinds.get(field.name, int):
            raise TraceError(f"its header has no {field.name}; log the run again")
    for field in fields(LogHeader)[-2:]:
        if found[field.name] < 1:
            raise TraceError(f"its {field.name} is {found[field.name]}; log the run again")
    return LogHeader(**{field.name: found[field.name] for field in fields(LogHeader)})


def _fields(prefix: str, values: Any, names: Any) -> dict[str, Any]:
    return {f"{prefix}.{toml_key(name)}": getattr(values, name) for name in names}


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
