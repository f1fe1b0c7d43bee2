"""The arguments of every command."""

from __future__ import annotations

import argparse
import difflib
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from kvtier.cli import commands
from kvtier.cli.outcome import Exit
from kvtier.environment import package_version
from kvtier.settings import Device

Command = Callable[[argparse.Namespace], Exit]


class OneLineParser(argparse.ArgumentParser):
    """Refuses in one line that says where to read on."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"kvtier: {message}; see '{self.prog} --help'\n")


class CommandParser(OneLineParser):
    """Of one command: what it does not know, it refuses itself, so that its own help is named."""

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        known, unknown = super().parse_known_args(*given, **named)
        if unknown:
            near = difflib.get_close_matches(unknown[0], self._option_string_actions, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return known, unknown


def build_parser() -> argparse.ArgumentParser:
    """The parser; ``command`` of what it parsed is the function to call."""
    parser = OneLineParser(
        prog="kvtier",
        description="A multilevel read-through page cache: replay recorded traces through it, "
        "simulate it, serve one to other hosts.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"kvtier {package_version('kvtier')}"
    )
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=CommandParser
    )
    add = partial(subparsers.add_parser, allow_abbrev=False)
    replay = add("replay", help="drive a trace into a real cache, and measure")
    replay.add_argument(
        "--events",
        dest="events_out",
        type=Path,
        metavar="F",
        help="log the order of completions, for simulate to repeat (not in waves)",
    )
    _add_run(replay, commands.replay)
    simulate = add("simulate", help="drive a trace in virtual time, on modelled devices")
    simulate.add_argument(
        "--events",
        type=Path,
        metavar="F",
        help="repeat the log of a replay, with the same trace and settings: it decides alike",
    )
    _add_run(simulate, commands.simulate)
    _add_size(add("size", help="find the cheapest tiers with which a trace meets a target"))
    _add_report(add("report", help="show results of runs again, or side by side"))
    _add_import(add("import", help="turn a foreign trace into kvtier's format"))
    _add_inspect(add("inspect", help="say what is in a trace"))
    _add_calibrate(add("calibrate", help="measure a device, and write its model as settings"))
    _add_serve(add("serve", help="export a backend to other hosts"))
    _finish(
        add("doctor", help="what this machine can do, and what it lacks"),
        commands.doctor,
    )
    return parser


def _add_run(parser: argparse.ArgumentParser, command: Command) -> None:
    parser.add_argument("trace", type=Path, metavar="TRACE", help="a Parquet trace")
    _add_settings(parser)
    parser.add_argument(
        "--device",
        choices=typing.get_args(Device),
        help="where the hbm tier lives: on a GPU, on the CPU, or on a GPU if there is one",
    )
    _add_scale(parser)
    parser.add_argument(
        "--name", type=_words, metavar="TEXT", help="what reports call this run (its mode)"
    )
    _add_json(parser)
    _add_html(parser)
    _finish(parser, command)


def _add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", type=Path, metavar="TRACE", help="a Parquet trace")
    parser.add_argument(
        "--target",
        dest="targets",
        action="append",
        required=True,
        metavar="NAME=VALUE",
        help="hit_rate=0.5, p50=100us, p99=2ms, iops=1M, origin_iops=50k, years=5; may be given "
        "again, and then all must be met",
    )
    parser.add_argument(
        "--max",
        dest="bounds",
        action="append",
        default=[],
        metavar="TIER=SIZE,…",
        help="the largest capacities to try, e.g. hbm=80GiB,dram=1TiB; 0 leaves a tier out",
    )
    parser.add_argument(
        "--prices", type=Path, metavar="F.toml", help="in the place of the assumed prices"
    )
    parser.add_argument(
        "--budget",
        type=_at_least(1),
        default=60,
        metavar="N",
        help="simulations at most (%(default)s)",
    )
    parser.add_argument(
        "--exhaustive",
        action="store_true",
        help="simulate every configuration that is cheaper than the answer",
    )
    _add_settings(parser)
    _add_scale(parser)
    parser.add_argument(
        "--out", type=Path, metavar="F.toml", help="write the answer as settings for simulate"
    )
    _add_json(parser)
    _finish(parser, commands.size)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="results that --json wrote"
    )
    _add_html(parser)
    _finish(parser, commands.report)


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", metavar="FORMAT", help="mooncake, page-reads")
    parser.add_argument("source", type=Path, metavar="SRC", help="the foreign file")
    parser.add_argument("target", type=Path, metavar="DST", help="the Parquet file to write")
    parser.add_argument(
        "--licence", default="not stated", metavar="TEXT", help="of the source (%(default)s)"
    )
    _add_option(parser, "an option of the format, e.g. page_bytes=4096")
    _add_json(parser)
    _finish(parser, commands.import_foreign)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", type=Path, metavar="TRACE", help="a Parquet trace")
    parser.add_argument(
        "--limit", type=_at_least(1), metavar="REQUESTS", help="look at the first requests only"
    )
    _add_json(parser)
    _finish(parser, commands.inspect)


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a directory for a temporary file, or a file"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="F.toml", help="the settings to write"
    )
    parser.add_argument(
        "--seconds", type=_at_least(1), default=20, metavar="N", help="to measure for (%(default)s)"
    )
    parser.add_argument(
        "--rounds",
        type=_at_least(1),
        default=1,
        metavar="N",
        help="measure so often, --seconds each, and take the medians (%(default)s)",
    )
    parser.add_argument("--size", default="1GiB", help="of the file (%(default)s)")
    parser.add_argument("--page-bytes", default="4KiB", metavar="SIZE", help="(%(default)s)")
    parser.add_argument(
        "--write", action="store_true", help="OVERWRITE the file at PATH to measure writes too"
    )
    _add_json(parser)
    _finish(parser, commands.calibrate)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_settings(parser)
    parser.add_argument("--host", help="where to listen (127.0.0.1); beyond loopback see docs")
    parser.add_argument("--port", type=_port, help="0 takes any (7070)")
    parser.add_argument("--backend", metavar="NAME", help="in the place of the settings' origin")
    _add_option(parser, "an option of --backend")
    parser.add_argument(
        "--token-file", type=Path, metavar="F", help="tokens of clients, and their tenants"
    )
    parser.add_argument(
        "--metrics-port", type=_port, metavar="PORT", help="tell metrics and health over HTTP there"
    )
    _finish(parser, commands.serve)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="F.toml", help="settings")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting, e.g. tiers.dram.capacity=1GiB; may be given again",
    )


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit", type=_at_least(1), metavar="REQUESTS", help="take only the first requests"
    )
    parser.add_argument(
        "--pages-per-block",
        type=_at_least(1),
        metavar="N",
        help="pages that stand for one KV block (4 in replay, all of the model's in simulate)",
    )


def _add_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"{what}; may be given again",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", type=Path, metavar="F", help="write the result as JSON; - for the standard output"
    )


def _add_html(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--html", type=Path, metavar="F", help="write a page with plots, one file to pass on"
    )


def _finish(parser: argparse.ArgumentParser, command: Command) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    parser.set_defaults(command=command)


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least} or more")
        return number

    return parse


def _words(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is no name: write some words in one line")
    return text.strip()


def _port(text: str) -> int:
    port = _at_least(0)(text)
    if port > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: they end at 65535")
    return port
