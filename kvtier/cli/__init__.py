"""The command line: argument parsing, calls, and one line for whatever goes wrong."""

from kvtier.cli.main import main

__all__ = ["main"]
