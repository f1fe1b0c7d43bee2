"""Mooncake's JSON lines become a request trace."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from kvtier.errors import TraceError
from kvtier.trace import import_trace, inspect_trace, open_trace

GOLDEN = Path(__file__).parents[1] / "golden"
SOURCE = GOLDEN / "trace_mooncake.jsonl"
LINE = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}


def requests_of(path: Path) -> list[dict[str, Any]]:
    names = ("t_ns", "session", "in_tokens", "out_tokens", "block_ids")
    return [
        {name: getattr(request, name) for name in names} | {"block_ids": request.block_ids.tolist()}
        for request in open_trace(path).requests()
    ]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def times_ms(path: Path) -> list[float]:
    return [request.t_ns / 1e6 for request in open_trace(path).requests()]


def test_requests_are_the_golden_ones(tmp_path: Path) -> None:
    import_trace("mooncake", SOURCE, tmp_path / "t.parquet")
    expected = json.loads((GOLDEN / "trace_mooncake.expected.json").read_text())
    assert requests_of(tmp_path / "t.parquet") == expected


def test_the_trace_says_what_it_is_and_what_is_made_up(tmp_path: Path) -> None:
    summary = import_trace("mooncake", SOURCE, tmp_path / "t.parquet", licence="Apache-2.0")
    assert (summary.kind, summary.requests, summary.references) == ("requests", 7, 19)
    metadata = open_trace(tmp_path / "t.parquet").metadata
    assert metadata.block_tokens == 512
    assert metadata.licence == "Apache-2.0"
    assert metadata.source == "trace_mooncake.jsonl"
    assert metadata.source_sha256 == hashlib.sha256(SOURCE.read_bytes()).hexdigest()
    assert metadata.time_quantum_ns == 3_000_000_000
    assert [text.split(":")[0] for text in metadata.synthetic] == ["sessions", "t_ns"]


def test_facts_of_the_golden_trace(tmp_path: Path) -> None:
    import_trace("mooncake", SOURCE, tmp_path / "t.parquet")
    facts = inspect_trace(tmp_path / "t.parquet")
    assert facts["references"] == 19
    assert facts["unique"] == 11
    assert facts["prefix_hits"] == 8  # 0 + 1 + 0 + 3 + 0 + 2 + 2
    assert facts["prefix_hit_rate"] == 8 / 19
    assert facts["in_tokens"] == 8409
    assert facts["sessions"] == 7
    json.dumps(facts)


def test_time_stamps_that_differ_are_left_alone(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "s.jsonl", [LINE | {"timestamp": t} for t in (0, 7.5, 8, 9000)])
    import_trace("mooncake", source, tmp_path / "t.parquet")
    assert times_ms(tmp_path / "t.parquet") == [0, 7.5, 8, 9000]


def test_equal_time_stamps_spread_up_to_the_next_stamp_at_most(tmp_path: Path) -> None:
    stamps = (0, 0, 1000, 1000, 1000)
    source = write_lines(tmp_path / "s.jsonl", [LINE | {"timestamp": t} for t in stamps])
    import_trace("mooncake", source, tmp_path / "t.parquet")
    assert times_ms(tmp_path / "t.parquet") == [0, 500, 1000, 2000, 3000]


def test_a_quantum_of_zero_leaves_equal_time_stamps_equal(tmp_path: Path) -> None:
    import_trace("mooncake", SOURCE, tmp_path / "t.parquet", quantum_ms=0)
    assert times_ms(tmp_path / "t.parquet") == [0, 0, 0, 3000, 5999, 5999, 6999]
    metadata = open_trace(tmp_path / "t.parquet").metadata
    assert [text.split(":")[0] for text in metadata.synthetic] == ["sessions"]


def test_another_block_size(tmp_path: Path) -> None:
    line = LINE | {"input_length": 40, "hash_ids": [1, 2, 3]}
    source = write_lines(tmp_path / "s.jsonl", [line])
    import_trace("mooncake", source, tmp_path / "t.parquet", block_tokens=16)
    assert open_trace(tmp_path / "t.parquet").metadata.block_tokens == 16


def test_blank_lines_are_skipped_but_counted(tmp_path: Path) -> None:
    source = tmp_path / "s.jsonl"
    source.write_text("\n" + json.dumps(LINE) + "\n \n{")
    with pytest.raises(TraceError, match="line 4: no JSON"):
        import_trace("mooncake", source, tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"timestamp": -1}, "timestamp is -1"),
        ({"timestamp": "0"}, "timestamp is '0'"),
        ({"timestamp": None}, "timestamp is None"),
        ({"timestamp": float("nan")}, "timestamp is nan"),
        ({"timestamp": 1 << 62}, "timestamp is 4611686018427387904"),
        ({"input_length": -5}, "input_length is -5"),
        ({"input_length": 1.5}, "input_length is 1.5"),
        ({"output_length": 1 << 32}, "output_length is 4294967296"),
        ({"output_length": True}, "output_length is True"),
        ({"hash_ids": []}, "hash_ids is no list, or is empty"),
        ({"hash_ids": 3}, "hash_ids is no list, or is empty"),
        ({"hash_ids": [1, -2]}, "hash_ids has an item that is no whole number"),
        ({"hash_ids": [1, 1 << 64]}, "hash_ids has an item that is no whole number"),
        ({"hash_ids": [1, 2.0]}, "hash_ids has an item that is no whole number"),
        ({"hash_ids": [1, 2, 3]}, "3 hash_ids do not fit input_length 600 in blocks of 512"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    source = write_lines(tmp_path / "s.jsonl", [LINE, LINE | changed])
    with pytest.raises(TraceError, match="line 2: ") as caught:
        import_trace("mooncake", source, tmp_path / "t.parquet")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]


@pytest.mark.parametrize("name", sorted(LINE))
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    line = {key: value for key, value in LINE.items() if key != name}
    with pytest.raises(TraceError, match=f"line 1: {name} is missing"):
        import_trace("mooncake", write_lines(tmp_path / "s.jsonl", [line]), tmp_path / "t.parquet")


@pytest.mark.parametrize("text", [b"PAR1\x00\xff\n", b"3\n", b"[" * 10_000, b"{'a': 1}"])
def test_a_foreign_file_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "s.jsonl").write_bytes(text)
    with pytest.raises(TraceError, match="line 1: no JSON"):
        import_trace("mooncake", tmp_path / "s.jsonl", tmp_path / "t.parquet")


def test_time_that_goes_backwards_is_refused(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "s.jsonl", [LINE | {"timestamp": t} for t in (5, 9, 8)])
    with pytest.raises(TraceError, match="line 3: timestamp is less than the line before's"):
        import_trace("mooncake", source, tmp_path / "t.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").touch()
    with pytest.raises(TraceError, match="there are no requests"):
        import_trace("mooncake", tmp_path / "s.jsonl", tmp_path / "t.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["s.jsonl"]


def test_a_file_without_line_ends_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvtier.trace.mooncake._LINE_BYTES_MAX", 100)
    (tmp_path / "s.jsonl").write_bytes(b"[" * 10_000)
    with pytest.raises(TraceError, match="line 1: longer than"):
        import_trace("mooncake", tmp_path / "s.jsonl", tmp_path / "t.parquet")


def test_too_many_requests_with_one_time_stamp_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvtier.trace.mooncake._REQUESTS_PER_STAMP_MAX", 2)
    with pytest.raises(TraceError, match="line 3: more than 2 requests with one timestamp"):
        import_trace("mooncake", SOURCE, tmp_path / "t.parquet")
    import_trace("mooncake", SOURCE, tmp_path / "t.parquet", quantum_ms=0)
