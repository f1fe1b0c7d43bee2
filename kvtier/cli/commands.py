"""What each command does: settings, one call, and the result written and shown."""

# Each command imports what it runs, once its settings are known to be right: a compiler and a
# Parquet reader take a second to load, and neither ``--help`` nor a typing error needs them.
# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from kvtier.cli.outcome import Exit, complain
from kvtier.cli.outputs import check_tier_file
from kvtier.environment import event_loop_factory
from kvtier.errors import KvtierError, SettingsError
from kvtier.pages import check_page_bytes
from kvtier.settings import OriginSettings, Settings, load_settings, parse_assignment
from kvtier.units import parse_bytes

T = TypeVar("T")

_SERVE_OPTIONS: Final = ("host", "port", "token_file", "metrics_port")
"""Of the command line, which win over the settings of the same names."""

_WIDTH: Final = 110
"""Columns of a report that goes to no terminal."""


def replay(arguments: argparse.Namespace) -> Exit:
    """``kvtier replay``: a trace through the cache, on real devices."""
    settings = _settings_of_run(arguments)
    check_tier_file(settings, arguments)
    from kvtier.cli.progress import LateProgress
    from kvtier.replay import replay_trace

    with LateProgress("replay") as progress:
        run = replay_trace(
            arguments.trace,
            settings,
            limit=arguments.limit,
            progress=progress.update,
            notify=progress.notify,
            events=arguments.events_out,
        )
        result = run_async(run)
    return _deliver(_named(result, arguments.name), arguments.json, arguments.html)


def simulate(arguments: argparse.Namespace) -> Exit:
    """``kvtier simulate``: a trace through the cache, in virtual time."""
    settings = _settings_of_run(arguments)
    from kvtier.cli.progress import LateProgress
    from kvtier.replay import simulate_trace

    with LateProgress("simulate") as progress:
        result = simulate_trace(
            arguments.trace,
            settings,
            limit=arguments.limit,
            progress=progress.update,
            notify=progress.notify,
            events=arguments.events,
        )
    return _deliver(_named(result, arguments.name), arguments.json, arguments.html)


def size(arguments: argparse.Namespace) -> Exit:
    """``kvtier size``: the cheapest tiers with which a trace meets its targets."""
    overrides = list(arguments.overrides)
    if arguments.pages_per_block is not None:
        overrides.append(f"replay.pages_per_block={arguments.pages_per_block}")
    settings = load_settings(arguments.config, overrides)
    from kvtier.cli.progress import LateProgress
    from kvtier.report.json_file import STDOUT, write_json, write_text
    from kvtier.sizing import SizingTask, load_prices, parse_bounds, parse_target, size_trace
    from kvtier.sizing.configuration import configuration_toml, confirming_command
    from kvtier.sizing.terminal import print_sizing

    task = SizingTask(
        arguments.trace,
        settings,
        [parse_target(text) for text in arguments.targets],
        load_prices(arguments.prices),
        parse_bounds(arguments.bounds, [tier.name for tier in settings.tiers]),
        arguments.limit,
        arguments.budget,
        arguments.exhaustive,
    )
    with LateProgress("size") as progress:
        result = size_trace(task, progress=progress.update, notify=progress.notify)
    if arguments.out is not None:
        write_text(arguments.out, configuration_toml(arguments.config, overrides, result))
    if arguments.json is not None:
        write_json(arguments.json, result)
    if STDOUT not in (arguments.json, arguments.out):
        print_sizing(result, _console())
        command = confirming_command(result, arguments.config, arguments.overrides, arguments.out)
        sys.stdout.write(f"confirm with: {command}\n")
    if not result["complete"]:
        complain("interrupted; this is the cheapest that was found until then")
        return Exit.INTERRUPTED
    return Exit.DONE


def report(arguments: argparse.Namespace) -> Exit:
    """``kvtier report``: results of earlier runs, shown again or side by side."""
    from kvtier.report.reading import read_result
    from kvtier.report.side_by_side import print_side_by_side
    from kvtier.report.terminal import print_report

    results = [read_result(path) for path in arguments.files]
    if arguments.html is not None:
        _write_page(arguments.html, results)
    if len(results) == 1:
        print_report(results[0], _console())
    else:
        print_side_by_side(results, _console())
    flaws = [
        f"{path}: {flaw}"
        for path, result in zip(arguments.files, results, strict=True)
        for flaw in _flaws(result)
    ]
    for flaw in flaws:
        complain(flaw)
    return Exit.FAILED if flaws else Exit.DONE


def import_foreign(arguments: argparse.Namespace) -> Exit:
    """``kvtier import``: a foreign trace to kvtier's format."""
    options = _options(arguments)
    from kvtier.trace import format_options, import_trace

    known = format_options(arguments.format)
    for name in options:
        if name not in known:
            there_are = ", ".join(known) or "none"
            raise SettingsError(f"--option {name}: format {arguments.format} has {there_are}")
    summary = import_trace(
        arguments.format, arguments.source, arguments.target, licence=arguments.licence, **options
    )
    _show(f"{arguments.source} -> {arguments.target}", asdict(summary), arguments.json)
    return Exit.DONE


def inspect(arguments: argparse.Namespace) -> Exit:
    """``kvtier inspect``: what is in a trace."""
    from kvtier.trace import inspect_trace

    facts = inspect_trace(arguments.trace, arguments.limit)
    _show(str(arguments.trace), facts, arguments.json)
    return Exit.DONE


def serve(arguments: argparse.Namespace) -> Exit:
    """``kvtier serve``: a backend for other hosts, until SIGINT or SIGTERM."""
    settings = load_settings(arguments.config, arguments.overrides)
    origin = _origin_to_serve(settings, arguments)
    if settings.tiers and _is_chosen("tiers", arguments):
        complain("of no effect in serve: tiers; the origin is exported as it is")
    given = {name: getattr(arguments, name) for name in _SERVE_OPTIONS}
    door = replace(
        settings.serve, **{name: value for name, value in given.items() if value is not None}
    )
    from kvtier.server import run

    logging.basicConfig(format="kvtier serve: %(message)s", level=logging.WARNING)
    run_async(run(origin, door, settings.page_bytes, _announce, seed=settings.seed))
    return Exit.DONE


def calibrate(arguments: argparse.Namespace) -> Exit:
    """``kvtier calibrate``: a device measured, and its model written as settings."""
    size_bytes = _size_bytes(arguments.size, "--size")
    page_bytes = _size_bytes(arguments.page_bytes, "--page-bytes")
    check_page_bytes(page_bytes)
    from kvtier.calibration import calibrate, to_mapping, to_text, to_toml
    from kvtier.cli.progress import LateProgress
    from kvtier.report.json_file import STDOUT, write_json, write_text

    with LateProgress("calibrate") as progress:
        calibration = calibrate(
            arguments.path,
            seconds=arguments.seconds,
            rounds=arguments.rounds,
            size_bytes=size_bytes,
            page_bytes=page_bytes,
            write=arguments.write,
            progress=progress.update,
            notify=progress.notify,
        )
    write_text(arguments.out, to_toml(calibration))
    if arguments.json is not None:
        write_json(arguments.json, to_mapping(calibration))
    if STDOUT not in (arguments.json, arguments.out):
        sys.stdout.write(to_text(calibration))
    return Exit.DONE


def doctor(arguments: argparse.Namespace) -> Exit:  # noqa: ARG001  # it has no options
    """``kvtier doctor``: fails if something is missing that nothing works without."""
    from kvtier.doctor import diagnose, is_fit
    from kvtier.report.checks import print_checks

    checks = diagnose()
    print_checks(checks, _console())
    return Exit.DONE if is_fit(checks) else Exit.FAILED


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` on uvloop where it exists; Ctrl-C cancels it, so that it can end cleanly."""
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        return runner.run(work)


def _settings_of_run(arguments: argparse.Namespace) -> Settings:
    """Settings of a run; its options win over ``--set``, which wins over the file."""
    overrides = list(arguments.overrides)
    if arguments.device is not None:
        overrides.append(f"device={arguments.device}")
    if arguments.pages_per_block is not None:
        overrides.append(f"replay.pages_per_block={arguments.pages_per_block}")
    return load_settings(arguments.config, overrides)


def _named(result: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """The result under the name that ``--name`` gives it in reports."""
    return result if name is None else {**result, "name": name}


def _deliver(result: Mapping[str, Any], json: Path | None, html: Path | None = None) -> Exit:
    """Write and show the result of a run, whatever became of it; then judge it."""
    from kvtier.report.json_file import STDOUT, write_json
    from kvtier.report.terminal import print_report

    if json is not None:
        write_json(json, result)
    if html is not None:
        _write_page(html, [result])
    if json != STDOUT:
        print_report(result, _console())
    flaws = _flaws(result)
    if flaws:
        raise KvtierError("; ".join(flaws))
    if not result["complete"]:
        complain("interrupted; this is what was measured until then")
        return Exit.INTERRUPTED
    return Exit.DONE


def _write_page(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    from kvtier.report.json_file import write_text
    from kvtier.report.page import render_page

    write_text(path, render_page(results))


def _flaws(result: Mapping[str, Any]) -> list[str]:
    """Why a result cannot be trusted, each as a sentence; empty for a sound one."""
    from kvtier.report.soundness import check_figures, check_sums

    broken, verify = check_sums(result), result["verify"]
    flaws = [f"the sums of this result do not hold: {'; '.join(broken)}"] if broken else []
    wrong = check_figures(result)
    if wrong:
        flaws.append(f"figures of this result cannot be: {'; '.join(wrong)}")
    if verify and verify["corrupt_pages"]:
        flaws.append(
            f"{verify['corrupt_pages']} of {verify['checked_pages']} checked pages had wrong "
            "bytes: do not trust this store"
        )
    return flaws


def _show(title: str, values: Mapping[str, Any], path: Path | None) -> None:
    """Write and show what a command found out."""
    from kvtier.report.json_file import STDOUT, write_json
    from kvtier.report.mapping import print_mapping

    if path is not None:
        write_json(path, values)
    if path != STDOUT:
        print_mapping(title, values, _console())


def _origin_to_serve(settings: Settings, arguments: argparse.Namespace) -> OriginSettings:
    if arguments.backend is not None:
        return OriginSettings(arguments.backend, _options(arguments))
    if arguments.option:
        raise SettingsError("--option needs --backend; for the settings' origin use --set")
    if settings.origin is None or not _is_chosen("origin", arguments):
        raise SettingsError("nothing to serve: give --backend NAME, or an [origin] in --config")
    return settings.origin


def _is_chosen(table: str, arguments: argparse.Namespace) -> bool:
    """Whether a table of the settings, if it is there, is not that of the defaults."""
    return arguments.config is not None or any(
        text.startswith(f"{table}.") for text in arguments.overrides
    )


def _size_bytes(text: str, flag: str) -> int:
    """A size with its unit, or plain bytes."""
    return parse_bytes(int(text) if text.isdecimal() else text, flag)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    return dict(parse_assignment(text, "--option") for text in arguments.option)


def _announce(url: str, metrics_url: str | None) -> None:
    """The lines that scripts wait for."""
    sys.stdout.write(f"kvtier serve: listening on {url}\n")
    if metrics_url is not None:
        sys.stdout.write(f"kvtier serve: metrics on {metrics_url}/metrics\n")
    sys.stdout.flush()


def _console() -> Any:
    """The standard output; a file or a pipe has no width of its own."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=_WIDTH)
    return console
