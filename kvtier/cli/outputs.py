"""The files that a command writes, checked before any work starts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from kvtier.errors import SettingsError
from kvtier.settings import Settings

_READ: Final = ("trace", "config", "prices", "source", "path", "token_file", "events")
"""Arguments that name a file which is read; ``files`` names several."""

_STDOUT: Final = Path("-")


def check_outputs(arguments: argparse.Namespace) -> None:
    """Make sure that every output can be written, over nothing that is still needed.

    Raises:
        SettingsError: it cannot be written there, it is what the command reads, or two outputs
            name one file.
    """
    # The drawing of a page needs packages that a command without --html does not.
    from kvtier.report.json_file import check_target  # noqa: PLC0415

    given = vars(arguments)
    read = [given[name] for name in _READ if given.get(name)] + list(given.get("files") or ())
    files = [Path(path) for path in read if not Path(path).is_dir()]
    taken = {path.resolve(): "is read by this command" for path in files}
    if "target" in given:  # of an import, which refuses its source itself
        taken[given["target"].resolve()] = "is what this command makes"
    for name in ("json", "html", "out", "events"):
        # What a replay logs, a simulation reads.
        path = given.get("events_out" if name == "events" else name)
        if path is None:
            continue
        if name == "events" and (path == _STDOUT or (path.exists() and not path.is_file())):
            raise SettingsError(f"--events {path}: a log needs a file of its own; name one")
        if name == "html":
            from kvtier.report.page import check_page  # noqa: PLC0415

            check_page(path)
        else:
            check_target(path)
        place = path if path == _STDOUT else path.resolve()
        if place in taken:
            raise SettingsError(f"--{name} {path}: {taken[place]}; name another")
        taken[place] = f"--{name} names the same file"


def check_tier_file(settings: Settings, arguments: argparse.Namespace) -> None:
    """Make sure that the files of the ``nvme`` tier, which a replay overwrites, are none it reads.

    Raises:
        SettingsError: it is.
    """
    reads = [getattr(arguments, name) for name in ("trace", "config")]
    for tier in settings.tiers:
        key = "paths" if tier.paths else "path"
        for path in tier.files:
            if not path.exists():
                continue
            if any(read is not None and read.exists() and path.samefile(read) for read in reads):
                raise SettingsError(
                    f"tiers.{tier.name}.{key}: {path} is read by this command, and the tier "
                    "would overwrite it; name another"
                )
