"""From arguments to an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final

from kvtier.cli.outcome import Exit, complain
from kvtier.cli.outputs import check_outputs
from kvtier.cli.parser import build_parser
from kvtier.errors import (
    KvtierError,
    LimitError,
    SettingsError,
    TraceError,
    UnknownBackendError,
)

_BAD_INPUT: Final = (SettingsError, TraceError, UnknownBackendError, LimitError)


def run(argv: Sequence[str] | None) -> int:
    """As :func:`kvtier.cli.main`; Ctrl-C raises KeyboardInterrupt."""
    arguments = build_parser().parse_args(argv)
    try:
        check_outputs(arguments)
        code: Exit = arguments.command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        _let_go_of_stdout()
        return Exit.FAILED
    except Exception as error:  # the last line of defence: whatever it is becomes one line
        if arguments.debug:
            traceback.print_exc()
        complain(_sentence(error))
        _flush_or_let_go()
        return Exit.BAD_INPUT if isinstance(error, _BAD_INPUT) else Exit.FAILED
    return code


def _sentence(error: Exception) -> str:
    if isinstance(error, KvtierError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory: lower tiers.*.capacity or chain.staging"
    name = type(error).__name__
    return f"{name}: {error}: a bug in kvtier; run again with --debug for the traceback"


def _flush_or_let_go() -> None:
    """What the error left unwritten; it may be the standard output itself that failed."""
    try:
        sys.stdout.flush()
    except OSError:
        _let_go_of_stdout()


def _let_go_of_stdout() -> None:
    """Nobody reads on; without this the interpreter would complain when it flushes at its end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
