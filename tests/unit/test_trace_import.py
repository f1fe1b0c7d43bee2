"""The registry of foreign formats."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvtier.errors import TraceError
from kvtier.trace import FORMATS, format_options, import_trace

SOURCE = Path(__file__).parents[1] / "golden" / "trace_mooncake.jsonl"


def test_an_unknown_format_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no trace format 'mooncaek'; did you mean 'mooncake'"):
        import_trace("mooncaek", SOURCE, tmp_path / "t.parquet")


def test_an_unknown_format_gets_the_list(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="there are mooncake, page-reads"):
        import_trace("xyz", SOURCE, tmp_path / "t.parquet")


def test_an_unknown_option_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no option 'block_token'; did you mean 'block_tokens'"):
        import_trace("mooncake", SOURCE, tmp_path / "t.parquet", block_token=16)


@pytest.mark.parametrize(("name", "value"), [("block_tokens", 0), ("quantum_ms", -1)])
def test_an_option_out_of_range_is_refused(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(TraceError, match=f"option {name} is {value}"):
        import_trace("mooncake", SOURCE, tmp_path / "t.parquet", **{name: value})


def test_a_page_size_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="option page_bytes is 1000"):
        import_trace("page-reads", SOURCE, tmp_path / "t.parquet", page_bytes=1000)


def test_every_option_has_a_whole_number_or_a_word_as_its_default() -> None:
    defaults = [value for name in FORMATS for value in format_options(name).values()]
    assert {type(value) for value in defaults} == {int, str}


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_missing_source_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(TraceError, match=r"none: cannot be read \(No such file"):
        import_trace(name, tmp_path / "none", tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_source_is_never_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "s.jsonl"
    source.write_bytes(SOURCE.read_bytes())
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(TraceError, match="source and target are the same file"):
        import_trace("mooncake", source, tmp_path / "link")


def test_pyarrow_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, kvtier.trace; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
