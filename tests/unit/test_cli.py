from __future__ import annotations

import asyncio
import copy
import io
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from kvtier.cli import main
from kvtier.cli.commands import _deliver, run_async
from kvtier.cli.progress import PATIENCE_NS, LateProgress
from kvtier.cli.run import _sentence
from kvtier.clock import VirtualClock
from kvtier.cuda import find_cuda_trouble
from kvtier.errors import KvtierError
from kvtier.report.comparison import differing_decisions
from kvtier.report.rows import find
from kvtier.report.schema import Result
from kvtier.report.soundness import check_sums

KVTIER = (sys.executable, "-m", "kvtier")
WAIT_S = 60


def _run(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as end:  # what argparse does
        return end.code if isinstance(end.code, int) else -1


def _complaint(argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with, and nothing else anywhere."""
    assert _run(argv) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kvtier: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("kvtier: ").rstrip("\n")


def _write_requests(path: Path, count: int) -> Path:
    """A Mooncake trace of sessions that share their first blocks."""
    lines = (
        {
            "timestamp": 10 * number,
            "input_length": 512 * 4,
            "output_length": 10,
            "hash_ids": [0, 1 + number % 7, 100 + number % 31, 1000 + number],
        }
        for number in range(count)
    )
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def _imported(directory: Path, count: int) -> Path:
    target = directory / "trace.parquet"
    source = _write_requests(directory / "source.jsonl", count)
    assert main(["import", "mooncake", str(source), str(target)]) == 0
    return target


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _imported(tmp_path_factory.mktemp("trace"), 200)


@pytest.fixture(scope="module")
def long_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than a run can finish while a test looks on."""
    return _imported(tmp_path_factory.mktemp("long"), 20_000)


SMALL = [
    *("--set", "tiers.hbm.capacity=256KiB"),
    *("--set", "tiers.dram.capacity=1MiB"),
    *("--set", "tiers.nvme.capacity=4MiB"),
]


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "the following arguments are required: COMMAND; see 'kvtier --help'"),
        (["frobnicate"], "argument COMMAND: invalid choice: 'frobnicate'"),
        (["replay"], "the following arguments are required: TRACE; see 'kvtier replay --help'"),
        (["replay", "t", "--limit", "0"], "argument --limit: '0' is no whole number of 1 or more"),
        (["replay", "t", "--limit", "x"], "argument --limit: 'x' is no whole number"),
        (["replay", "t", "--pages-per-block", "-1"], "argument --pages-per-block: '-1' is no"),
        (["replay", "t", "--device", "gpu"], "argument --device: invalid choice: 'gpu'"),
        (["replay", "t", "--config", "/none.toml"], "/none.toml: there is no such file"),
        (["replay", "t", "--set", "sed=1"], "--set: unknown key sed; did you mean seed?"),
        (["simulate", "t", "--set", "chain.staging=1 apple"], "--set: chain.staging: '1 apple'"),
        (["simulate", "t", "--set", "tiers"], "--set tiers: write --set KEY=VALUE"),
        (["replay", "t", "--json", "/none/result.json"], "/none/result.json: there is no directo"),
        (["replay", "t", "--html", "/none/page.html"], "/none/page.html: there is no directory"),
        (["simulate", "t", "--html", "-"], "--html -: a page is a file; name one"),
        (["replay", "t", "--json", "r", "--html", "r"], "--html r: --json names the same file"),
        (["simulate", "t", "--name", " "], "argument --name: ' ' is no name"),
        (
            ["replay", "t", "--limt", "3"],
            "--limt 3, did you mean --limit?; see 'kvtier replay --help'",
        ),
        (["inspect", "t", "more"], "unrecognized arguments: more; see 'kvtier inspect --help'"),
        (["report"], "the following arguments are required: FILE; see 'kvtier report --help'"),
        (["report", "/none.json"], "/none.json: cannot be read: No such file"),
        (["report", "/dev/null"], "/dev/null: is no JSON"),
        (["report", "r", "--html", "/none/page.html"], "/none/page.html: there is no directory"),
        (["inspect", "/none.parquet"], "/none.parquet: "),
        (["import", "mooncak", "a", "b"], "no trace format 'mooncak'; did you mean 'mooncake'?"),
        (["import", "mooncake", "/none.jsonl", "b"], "/none.jsonl: "),
        (["import", "mooncake", "a", "b", "--option", "page=1"], "--option page: format mooncake"),
        (["serve"], "nothing to serve: give --backend NAME"),
        (["serve", "--set", "origin.backend=memroy"], "no backend 'memroy' is installed"),
        (["serve", "--option", "a=1"], "--option needs --backend"),
        (["serve", "--backend", "memroy"], "no backend 'memroy' is installed: did you mean 'mem"),
        (["serve", "--backend", "memory", "--option", "a"], "--option a: write --option KEY=VALU"),
        (["serve", "--port", "65536"], "argument --port: '65536' is no port"),
        (
            ["serve", "--backend", "memory", "--token-file", "/none"],
            "serve.token_file /none: cannot",
        ),
        (["serve", "--backend", "memory", "--port", "0", "--host", "0.0.0.0"], "0.0.0.0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complaint in _complaint(argv, 2, capsys)


def test_a_missing_trace_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert "/none.parquet" in _complaint(["replay", "/none.parquet"], 2, capsys)
    assert "/none.parquet" in _complaint(["simulate", "/none.parquet"], 2, capsys)


def test_a_truncated_trace_is_bad_input(
    tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(trace.read_bytes()[:-100])
    for command in ("replay", "simulate", "inspect"):
        assert "broken.parquet" in _complaint([command, str(broken)], 2, capsys)


def test_tiers_larger_than_memory_are_bad_input(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["replay", str(trace), "--set", "tiers.dram.capacity=100TiB"]
    assert _run(argv) == 2
    assert "need 100 TiB of memory" in capsys.readouterr().err.splitlines()[-1]


def test_a_port_that_is_taken_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        argv = ["serve", "--backend", "memory", "--port", port]
        assert port in _complaint(argv, 1, capsys)


def test_a_dead_server_is_a_failure(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
    origin = ["--set", "origin.backend=tcp", "--set", f"origin.options.url={url}"]
    assert _run(["replay", str(trace), *SMALL, *origin]) == 1
    assert url.removeprefix("tcp://") in capsys.readouterr().err.splitlines()[-1]


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "/none.parquet", "--debug"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("kvtier: /none.parquet")


def test_an_error_that_nobody_expected_asks_for_debug() -> None:
    sentence = _sentence(RuntimeError("odd"))
    assert sentence == (
        "RuntimeError: odd: a bug in kvtier; run again with --debug for the traceback"
    )


def test_a_system_error_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none") as failure:
        (tmp_path / "none").open()
    assert _sentence(failure.value) == f"{tmp_path}/none: No such file or directory"


def test_an_unreadable_token_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "token"
    empty.touch()
    argv = ["serve", "--backend", "memory", "--token-file", str(empty)]
    assert "is empty" in _complaint(argv, 2, capsys)


def test_help_and_version_end_well(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["--version"], ["replay", "--help"], ["serve", "--help"]):
        assert _run(argv) == 0
    assert "kvtier" in capsys.readouterr().out


def test_doctor_ends_well_on_a_machine_that_runs_tests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "Python" in capsys.readouterr().out


def test_output_that_nobody_reads_is_no_drama() -> None:
    with _started(["doctor"], stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaints = process.stderr.read()
        assert process.wait(WAIT_S) == 1
    assert complaints == ""


def test_an_import_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _write_requests(tmp_path / "source.jsonl", 3)
    argv = ["import", "mooncake", str(source), str(tmp_path / "t.parquet"), "--licence", "CC0-1.0"]
    assert main([*argv, "--option", "quantum_ms=0", "--json", str(tmp_path / "t.json")]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["requests"] == 3
    assert "requests" in capsys.readouterr().out


def test_inspect_shows_and_writes_the_facts(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(trace), "--limit", "10"]) == 0
    assert "metadata" in capsys.readouterr().out
    assert main(["inspect", str(trace), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["requests"] == 200


@pytest.fixture(scope="module")
def results(trace: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The same run, replayed and simulated."""
    argv = [str(trace), *SMALL, "--pages-per-block", "2", "--limit", "150"]
    targets = [tmp_path_factory.mktemp("results") / mode for mode in ("replay", "simulate")]
    for target in targets:
        assert main([target.name, *argv, "--json", str(target)]) == 0
    return [json.loads(target.read_text()) for target in targets]


def test_replay_and_simulate_decide_the_same(results: list[dict[str, Any]]) -> None:
    assert [check_sums(result) for result in results] == [[], []]
    assert differing_decisions(results) == []


def test_a_replay_moves_bytes_and_checks_them(results: list[dict[str, Any]]) -> None:
    replayed, simulated = results
    assert replayed["trace"]["requests"] == 150
    assert replayed["verify"]["checked_pages"] > 0
    assert replayed["verify"]["corrupt_pages"] == 0
    assert replayed["environment"]["loop"] == "uvloop"
    assert simulated["verify"] is None


def _assert_keys(kind: type, values: dict[str, Any]) -> None:
    """Exactly the keys of a TypedDict, and of those inside it."""
    hints = typing.get_type_hints(kind)
    assert values.keys() == hints.keys()
    for key, hint in hints.items():
        for inner in filter(typing.is_typeddict, (hint, *typing.get_args(hint))):
            items = values[key] if isinstance(values[key], list) else [values[key]]
            if typing.get_origin(hint) is dict:
                items = list(values[key].values())
            for item in filter(None, items):
                _assert_keys(inner, item)


def test_results_have_the_keys_of_the_schema(results: list[dict[str, Any]]) -> None:
    for result in results:
        _assert_keys(Result, result)


@pytest.mark.parametrize(
    ("part", "key", "complaint"),
    [
        ("verify", "corrupt_pages", "1 of [0-9]+ checked pages had wrong bytes"),
        ("coalescing", "folded", "the sums of this result do not hold"),
    ],
)
def test_a_result_that_cannot_be_trusted_is_a_failure(
    part: str, key: str, complaint: str, results: list[dict[str, Any]], tmp_path: Path
) -> None:
    result = copy.deepcopy(results[0])
    result[part][key] += 1
    with pytest.raises(KvtierError, match=complaint):
        _deliver(result, tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == result


def _saved(directory: Path, results: list[dict[str, Any]]) -> list[str]:
    files = [directory / f"{number}.json" for number, _ in enumerate(results)]
    for file, result in zip(files, results, strict=True):
        file.write_text(json.dumps(result))
    return [str(file) for file in files]


def test_a_saved_result_is_reported_as_by_its_run(
    results: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _deliver(results[0], None)
    shown = capsys.readouterr().out
    assert main(["report", *_saved(tmp_path, results[:1])]) == 0
    assert capsys.readouterr().out == shown


def test_saved_results_are_reported_side_by_side(
    results: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["report", *_saved(tmp_path, results), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "replay = simulate: every decision is the same" in out
    assert max(map(len, out.splitlines())) <= 110
    assert "replay = simulate: every decision is the same" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("part", "key", "complaint"),
    [
        ("verify", "corrupt_pages", "checked pages had wrong bytes"),
        ("coalescing", "folded", "the sums of this result do not hold"),
        ("tiers.0", "hit_rate", "figures of this result cannot be: tiers.0.hit_rate is 1"),
    ],
)
def test_a_saved_result_that_cannot_be_trusted_is_shown_and_a_failure(
    part: str,
    key: str,
    complaint: str,
    results: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = copy.deepcopy(results[0])
    find(result, part)[key] += 1
    files = _saved(tmp_path, [results[1], result])
    page = tmp_path / "page.html"
    assert main(["report", *files, "--html", str(page)]) == 1
    captured = capsys.readouterr()
    assert "demand" in captured.out
    assert captured.err.startswith(f"kvtier: {files[1]}: ")
    assert complaint in captured.err
    assert "Do not trust these numbers." in page.read_text(encoding="utf-8")


def test_a_run_has_the_name_that_it_was_given(trace: Path, tmp_path: Path) -> None:
    target, page = tmp_path / "result.json", tmp_path / "page.html"
    argv = ["simulate", str(trace), *SMALL, "--limit", "10", "--json", str(target)]
    assert main([*argv, "--name", "two drives", "--html", str(page)]) == 0
    assert json.loads(target.read_text())["name"] == "two drives"
    assert "two drives" in page.read_text(encoding="utf-8")
    assert main(argv) == 0
    assert json.loads(target.read_text())["name"] == "simulate"


def test_a_page_that_cannot_be_made_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kvtier.report.page._NEEDED", ("no_such_package",))
    argv = ["replay", "/none.parquet", "--html", str(tmp_path / "page.html")]
    assert "pip install 'kvtier[report]'" in _complaint(argv, 2, capsys)


def test_json_on_the_standard_output_is_all_there_is(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", str(trace), *SMALL, "--limit", "10", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["mode"] == "simulate"


def test_replay_prints_a_report_and_says_first_what_it_takes(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "result.json"
    assert main(["replay", str(trace), *SMALL, "--limit", "20", "--json", str(target)]) == 0
    captured = capsys.readouterr()
    assert "kvtier replay" in captured.out
    assert "*scaled: 4 of 16384 pages per block*" in " ".join(captured.out.split())
    assert captured.err.startswith("kvtier: trace.parquet: 20 requests")
    assert json.loads(target.read_text())["complete"]


@contextmanager
def _started(argv: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A kvtier process, ended at the latest with the block."""
    process = subprocess.Popen([*KVTIER, *argv], stdout=subprocess.PIPE, text=True, **options)
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def _terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal; the second is for a child and is closed once it has it."""
    master, slave = pty.openpty()
    try:
        yield master, slave
    finally:
        os.close(master)


def _read_until(descriptor: int, wanted: bytes) -> None:
    """Read until the pattern ``wanted`` came; OSError when the other end closes before."""
    seen = b""
    while not re.search(wanted, seen):
        seen += os.read(descriptor, 4096)


@pytest.mark.parametrize("mode", ["replay", "simulate"])
def test_ctrl_c_ends_a_run_with_what_was_measured(
    mode: str, long_trace: Path, tmp_path: Path
) -> None:
    target, scratch = tmp_path / "result.json", tmp_path / "scratch"
    scratch.mkdir()
    argv = [
        mode,
        str(long_trace),
        *SMALL,
        "--set",
        "replay.concurrency=1",
        "--pages-per-block",
        "1",
    ]
    argv += ["--json", str(target)]
    environ = {**os.environ, "TMPDIR": str(scratch), "TERM": "xterm"}
    with (
        _terminal() as (master, slave),
        _started(argv, stderr=slave, env=environ) as process,
    ):
        os.close(slave)
        _read_until(master, rb"[1-9]\d+/20000")  # the progress bar, some requests on
        process.send_signal(signal.SIGINT)
        report, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    result = json.loads(target.read_text())
    assert not result["complete"]
    assert result["demand"]["reads"] > 0
    assert check_sums(result) == []
    assert "*interrupted: measured until then*" in " ".join(report.split())
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_where_it_listens_and_ends_well_on_a_signal(number: signal.Signals) -> None:
    argv = ["serve", "--port", "0", "--backend", "memory"]
    with _started(argv, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("kvtier serve: listening on tcp://127.0.0.1:")
        with socket.create_connection(("127.0.0.1", int(line.rsplit(":", 1)[1])), WAIT_S):
            process.send_signal(number)
            _, complaints = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert complaints == ""


def test_ctrl_c_cancels_the_work_so_that_it_can_answer_with_what_it_has() -> None:
    async def work() -> str:
        try:
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "what was measured"
        return "everything"

    assert run_async(work()) == "what was measured"


def test_work_runs_on_uvloop() -> None:
    async def work() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert run_async(work()) == "uvloop"


def _drawn(*, terminal: bool, at_ns: int) -> str:
    clock = VirtualClock()
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    with LateProgress("replay", clock, console) as progress:
        clock.advance_to(at_ns)
        progress.update(5, 10)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_bar_appears_after_two_seconds() -> None:
    assert _drawn(terminal=True, at_ns=PATIENCE_NS - 1) == ""
    assert "5/10" in _drawn(terminal=True, at_ns=PATIENCE_NS)


def test_no_bar_where_there_is_no_terminal() -> None:
    assert _drawn(terminal=False, at_ns=PATIENCE_NS) == ""


def test_a_notice_is_one_line_on_the_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    LateProgress("replay").notify("this will\ntake a while")
    assert capsys.readouterr().err == "kvtier: this will take a while\n"


def test_a_server_draws_from_the_seed_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    async def serve(*_: object, seed: int, **__: object) -> None:
        seeds.append(seed)

    monkeypatch.setattr("kvtier.server.run", serve)
    main(["serve", "--set", "origin.latency.preset=s3-standard", "--set", "seed=7"])
    assert seeds == [7]


@pytest.mark.parametrize(("override", "is_told"), [("tiers.dram.ways=8", True), ("seed=7", False)])
def test_a_server_says_that_it_has_no_tiers(
    override: str,
    is_told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def serve(*_: object, **__: object) -> None:
        """Ends at once."""

    monkeypatch.setattr("kvtier.server.run", serve)
    assert main(["serve", "--backend", "memory", "--set", override]) == 0
    assert ("of no effect in serve: tiers" in capsys.readouterr().err) == is_told


def test_ctrl_c_while_commands_are_loaded_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Loading(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "kvtier.cli.run", Loading("kvtier.cli.run"))
    assert _complaint(["doctor"], 130, capsys) == "interrupted"


def test_a_file_that_is_no_log_is_found_out_before_anything_is_stored(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis").write_text("years of work")
    argv = ["replay", str(trace), "--set", f"tiers.nvme.path={tmp_path / 'thesis'}"]
    assert "is no log of kvtier: remove it" in _complaint(argv, 2, capsys)


def test_no_gpu_is_found_out_before_anything_is_stored(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_cuda_trouble() is None:
        pytest.skip("there is a GPU")
    assert _run(["replay", str(trace), "--device", "cuda"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "device cuda cannot be used" in line
