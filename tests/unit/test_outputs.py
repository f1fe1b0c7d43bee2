"""An output is never written over what a command reads, nor over another output."""

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
