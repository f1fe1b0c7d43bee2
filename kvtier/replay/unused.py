"""Settings that are of no effect in a run, told before it begins.

No errors: one file may be of several drives, and of both commands. What is of virtual time or of
the wall clock alone says so in the documents, and is not told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from kvtier.replay.workload import Workload
from kvtier.settings import ComputeSettings, ReplaySettings, ServingSettings, Settings, gpus_of
from kvtier.settings.keys import toml_key
from kvtier.trace import RequestTrace


def note_unused(settings: Settings, workload: Workload, notify: Callable[[str], None]) -> None:
    """Name the keys that were set, and are of no effect in this drive of this trace."""
    keys = list(_unused(settings, has_blocks=isinstance(workload.trace, RequestTrace)))
    if keys:
        drive = settings.replay.drive
        notify(f"of no effect in this run, whose drive is {drive}: {', '.join(keys)}")


def _unused(settings: Settings, *, has_blocks: bool) -> Iterator[str]:
    drive = settings.replay.drive
    idle = {
        "compute_s": drive not in ("closed", "open"),
        "tick_s": drive not in ("closed", "open"),
        "speed": drive not in ("open", "serving"),
        "spread": len(gpus_of(settings.topology)) == 1,
        "pages_per_block": not has_blocks,
        "model": not has_blocks,
    }
    changed = _changed(settings.replay, ReplaySettings())
    yield from (f"replay.{toml_key(name)}" for name in changed if idle.get(name))
    if drive != "serving":
        for table, values, plain in (
            ("compute", settings.compute, ComputeSettings()),
            ("serving", settings.serving, ServingSettings()),
        ):
            yield from (f"{table}.{toml_key(name)}" for name in _changed(values, plain))


def _changed(values: Any, plain: Any) -> list[str]:
    """Fields of a dataclass that are not as they are by default."""
    names = (field.name for field in fields(values))
    return [name for name in names if getattr(values, name) != getattr(plain, name)]
