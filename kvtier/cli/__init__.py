"""The command line: argument parsing, calls, and one line for whatever goes wrong."""

from __future__ import annotations

from collections.abc import Sequence

from kvtier.cli.outcome import Exit, complain

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; those of the process where None.

    Returns:
        The exit code. Wrong arguments, ``--help`` and ``--version`` raise SystemExit instead.
    """
    try:
        # Not before, for it takes a moment, and whoever is impatient gets one line as well.
        from kvtier.cli.run import run  # noqa: PLC0415

        return run(argv)
    except KeyboardInterrupt:
        complain("interrupted")
        return Exit.INTERRUPTED
