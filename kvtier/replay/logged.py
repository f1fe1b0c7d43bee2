"""What the event log of a replay says of it, and when a run can be logged at all."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Any

from kvtier.backend import Backend
from kvtier.chain.build import UNBOUNDED
from kvtier.errors import SettingsError
from kvtier.events import LoggedRun, LogHeader, deciding_settings, read_event_log
from kvtier.replay.workload import Workload
from kvtier.settings import Settings


def check_can_log(settings: Settings) -> None:
    """Refuse to log what needs no log, or has none.

    Raises:
        SettingsError: nothing in this drive depends on the order of completions, or it is only
            modelled.
    """
    if settings.replay.drive == "serving":
        raise SettingsError(
            "replay.drive is 'serving': a model server has no log of a replay; leave --events out"
        )
    if settings.replay.drive == "waves":
        raise SettingsError(
            "replay.drive is 'waves': nothing there depends on time, so no order needs to be "
            "logged; leave --events out, or set replay.drive to closed or open"
        )


def new_header(workload: Workload, settings: Settings, origin: Backend | None) -> LogHeader:
    """The header of a new log; its name is made up."""
    extent_pages = batch_extents = UNBOUNDED
    if origin is not None:
        extent_pages = origin.capability.extent_pages_max
        batch_extents = origin.capability.batch_extents_max
    return LogHeader(
        log_id=secrets.token_hex(8),
        trace=trace_facts(workload),
        settings=deciding_settings(settings),
        origin_extent_pages_max=extent_pages,
        origin_batch_extents_max=batch_extents,
    )


def open_fitting_log(path: Path, workload: Workload, settings: Settings) -> LoggedRun:
    """Open a log, and make sure that it is of this trace under these settings.

    Raises:
        TraceError: it is no log, or one of another trace.
        SettingsError: it was made with other settings.
    """
    logged = read_event_log(path)
    logged.header.check_settings(path, settings)
    logged.header.check_trace(path, workload.trace.path, trace_facts(workload))
    return logged


def describe_log(path: Path, header: LogHeader) -> dict[str, str]:
    """The ``drive.events`` of a result."""
    return {"path": str(path), "id": header.log_id}


def trace_facts(workload: Workload) -> dict[str, Any]:
    """By what a trace, and the part of it that was taken, is known again; its path may change."""
    with workload.trace.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "requests": workload.requests,
        "references": workload.references,
        "pages_per_block": workload.pages_per_block,
        "sha256": digest,
    }
