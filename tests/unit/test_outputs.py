"""An output is never written over what a command reads, nor over another output."""

import subprocess
import sys
from pathlib import Path

import pytest

from kvtier.cli import main


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("replay T --json T", "--json T: is read by this command"),
        ("simulate T --html T", "--html T: is read by this command"),
        ("simulate T --config C --json C", "--json C: is read by this command"),
        ("size T --target hit_rate=0.5 --out T", "--out T: is read by this command"),
        ("size T --target hit_rate=0.5 --prices P --json P", "--json P: is read by this command"),
        ("size T --target hit_rate=0.5 --json J --out J", "--out J: --json names the same file"),
        ("size T --target hit_rate=0.5 --json - --out -", "--out -: --json names the same file"),
        ("calibrate T --out T", "--out T: is read by this command"),
        ("calibrate T --out J --json J", "--out J: --json names the same file"),
        ("report T P --html P", "--html P: is read by this command"),
        ("inspect T --json T", "--json T: is read by this command"),
        ("import mooncake T J --json T", "--json T: is read by this command"),
        ("import mooncake T J --json J", "--json J: is what this command makes"),
        ("import mooncake T J --json L", "--json L: is what this command makes"),
        ("replay T --json J --html L", "--html L: --json names the same file"),
    ],
)
def test_what_is_read_or_written_already_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    names = {"T": "trace", "C": "config.toml", "P": "prices.toml", "J": "result.json", "L": "link"}
    for name in ("T", "C", "P"):
        (tmp_path / names[name]).write_text("precious")
    (tmp_path / "link").symlink_to("result.json")
    paths = {letter: str(tmp_path / name) for letter, name in names.items()}
    flag, _, rest = message.partition(" ")
    letter = rest[0]
    assert main([paths.get(word, word) for word in command.split()]) == 2
    shown = f"{flag} {paths.get(letter, letter)}{rest[1:]}; name another"
    assert capsys.readouterr().err == f"kvtier: {shown}\n"
    assert {path.name for path in tmp_path.iterdir()} == {
        "trace",
        "config.toml",
        "prices.toml",
        "link",
    }
    assert all((tmp_path / names[name]).read_text() == "precious" for name in ("T", "C", "P"))


@pytest.mark.parametrize("kind", ["itself", "symbolic", "hard"])
@pytest.mark.parametrize("read", ["trace", "config"])
def test_the_file_of_a_tier_is_not_laid_over_what_a_replay_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, read: str
) -> None:
    files = {"trace": tmp_path / "trace", "config": tmp_path / "config.toml"}
    files["trace"].write_text("precious")
    files["config"].write_text("seed = 1\n[tiers.nvme]\ncapacity = '1 MiB'\n")
    place = files[read] if kind == "itself" else tmp_path / "link"
    if kind == "symbolic":
        place.symlink_to(files[read])
    elif kind == "hard":
        place.hardlink_to(files[read])
    before = {name: path.read_text() for name, path in files.items()}
    command = ["replay", str(files["trace"]), "--config", str(files["config"])]
    assert main([*command, "--set", f"tiers.nvme.path={place}"]) == 2
    assert capsys.readouterr().err == (
        f"kvtier: tiers.nvme.path: {place} is read by this command, and the tier would overwrite "
        "it; name another\n"
    )
    assert {name: path.read_text() for name, path in files.items()} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
@pytest.mark.parametrize(
    "command",
    [
        "simulate T --limit 1 --json /dev/full",
        "simulate T --limit 1 --html /dev/full",
        "size T --limit 5 --target origin_iops=1G --budget 5 --out /dev/full",
        "size T --limit 5 --target origin_iops=1G --budget 5 --json /dev/full",
        "inspect T --json /dev/full",
    ],
)
def test_an_output_that_cannot_be_written_is_named(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    trace = str(Path(__file__).parents[2] / "traces" / "sample.parquet")
    assert main([trace if word == "T" else word for word in command.split()]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "kvtier: /dev/full: cannot be written: No space left on device; make room for it, or "
        "name another place"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_a_standard_output_that_cannot_be_written_is_named() -> None:
    trace = Path(__file__).parents[2] / "traces" / "sample.parquet"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "kvtier", "inspect", str(trace), "--json", "-"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("kvtier: the standard output: cannot be written: No space left")
    assert done.stderr.count("\n") == 1


def test_a_replaced_output_leaves_no_draft_where_its_name_is_too_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = Path(__file__).parents[2] / "traces" / "sample.parquet"
    target = tmp_path / ("n" * 250)
    assert main(["inspect", str(trace), "--json", str(target)]) == 1
    assert f"{target}: cannot be written: File name too long" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
