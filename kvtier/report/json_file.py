"""Results as files: whole or not there at all."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from kvtier.errors import KvtierError, SettingsError

STDOUT: Final = Path("-")


def check_target(path: Path) -> None:
    """Make sure, before any work starts, that :func:`write_json` can write to ``path``.

    Raises:
        SettingsError: it is a directory, or its directory is missing or not writable.
    """
    if path == STDOUT:
        return
    directory = path.absolute().parent
    if path.is_dir():
        raise SettingsError(f"{path}: is a directory; name a file in it")
    if not directory.is_dir():
        raise SettingsError(f"{path}: there is no directory {directory}; create it first")
    if not os.access(path if _is_device(path) else directory, os.W_OK):
        raise SettingsError(f"{path}: {directory} is not writable; name another place")


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result, whole: readers see the old file or the new one, never a part.

    Args:
        path: the file to make or replace; ``-`` is the standard output.
        result: JSON values; NumPy scalars and paths are turned into theirs.

    Raises:
        KvtierError: it cannot be written, and nothing is left behind; or it holds a number that
            JSON has not, NaN or an infinity.
        BrokenPipeError: nobody reads the standard output any more.
    """
    try:
        text = json.dumps(result, indent=2, allow_nan=False, default=_plain) + "\n"
    except ValueError as error:
        raise KvtierError(f"{path}: the result holds a NaN or an infinity: {error}") from error
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a file whole; arguments and refusals as of :func:`write_json`."""
    try:
        if path == STDOUT:
            sys.stdout.write(text)
            sys.stdout.flush()
        elif _is_device(path):
            path.write_text(text, encoding="utf-8")
        else:
            _replace(path.resolve(), text)
    except OSError as error:
        if path == STDOUT and isinstance(error, BrokenPipeError):
            raise
        place = "the standard output" if path == STDOUT else path
        raise KvtierError(
            f"{place}: cannot be written: {error.strerror or error}; make room for it, "
            "or name another place"
        ) from error


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _is_device(path: Path) -> bool:
    """Whether ``path`` is there and must not be replaced: ``/dev/stdout``, a named pipe."""
    return path.exists() and not path.is_file()


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no place in a JSON result")
