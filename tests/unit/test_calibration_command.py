"""``kvtier calibrate`` from its arguments to its files."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvtier.cli import main
from kvtier.jit import JIT_DISABLED
from kvtier.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60

compiled = pytest.mark.skipif(JIT_DISABLED, reason="minutes as plain Python")


@compiled
def test_a_calibration_writes_settings_that_a_simulation_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device, out, found = tmp_path / "device", tmp_path / "out.toml", tmp_path / "out.json"
    device.mkdir()
    limits = ["--seconds", "1", "--rounds", "2", "--size", "64MiB"]
    assert main(["calibrate", str(device), *limits, "--out", str(out), "--json", str(found)]) == 0
    assert list(device.iterdir()) == []
    assert "read 4 KiB, depth 128" in capsys.readouterr().out

    model = load_settings(out).tiers[0].model
    assert model is not None
    described = json.loads(found.read_text())
    assert described["model"]["iops"] == model.iops
    assert described["model"]["write_iops"] == model.write_iops
    assert described["seconds"] == len(described["host_rounds"]) == 2
    assert " in 2 rounds" in out.read_text()
    assert {row["load"] for row in described["loads"]} >= {"read 1 MiB, depth 16"}

    trace = str(ROOT / "traces" / "sample.parquet")
    assert main(["simulate", trace, "--config", str(out), "--limit", "20"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none", "--out", "{tmp}/o.toml"], "there is no such file or directory"),
        (["{tmp}", "--out", "{tmp}/none/o.toml"], "there is no directory {tmp}/none; create it"),
        (["{tmp}", "--out", "{tmp}"], "is a directory; name a file in it"),
        (["{tmp}", "--out", "{tmp}/o.toml", "--size", "1MiB"], "it must be 64 MiB at least"),
        (["{tmp}", "--out", "{tmp}/o.toml", "--size", "1GB/s"], "--size: '1GB/s' is no size"),
        (["{tmp}", "--out", "{tmp}/o.toml", "--page-bytes", "100"], "page_bytes is 100"),
        (["{tmp}", "--out", "{tmp}/o.toml", "--json", "{tmp}/n/x"], "there is no directory"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [text.replace("{tmp}", str(tmp_path)) for text in arguments]
    assert main(["calibrate", *given]) == 2
    captured = capsys.readouterr()
    assert message.replace("{tmp}", str(tmp_path)) in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@compiled
def test_ctrl_c_ends_a_calibration_and_leaves_nothing(tmp_path: Path) -> None:
    arguments = ["--seconds", "600", "--size", "64MiB", "--out", str(tmp_path / "o.toml")]
    command = [sys.executable, "-m", "kvtier", "calibrate", str(tmp_path), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _wait_for_load(process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
        process.wait()
    assert err.splitlines()[-1] == "kvtier: interrupted"
    assert process.returncode == 130
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def _wait_for_load(process: "subprocess.Popen[str]") -> None:
    """Until a load is under way: its threads are there, or its ring has ended operations."""
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        if len(list(Path(f"/proc/{process.pid}/task").iterdir())) > 32 or _ring_has_ended(process):
            return
        time.sleep(0.02)
    raise AssertionError("the load did not begin")


def _ring_has_ended(process: "subprocess.Popen[str]") -> bool:
    """Whether an io_uring of the process has told of ends of operations."""
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if descriptor.readlink().name == "anon_inode:[io_uring]":
                told = (descriptor.parent.parent / "fdinfo" / descriptor.name).read_text()
                return re.search(r"^CqTail:\s*[1-9]", told, re.M) is not None
    return False
