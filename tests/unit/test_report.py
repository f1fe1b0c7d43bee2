from __future__ import annotations

import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from kvtier.errors import KvtierError, SettingsError
from kvtier.report.json_file import check_target, write_json
from kvtier.report.mapping import print_mapping
from kvtier.report.schema import check_sums
from kvtier.report.side_by_side import differing_decisions, print_side_by_side
from kvtier.report.terminal import print_report

LATENCY = {"mean": 70.0, "p50": 60.0, "p90": 90.0, "p99": 120.0, "p999": 1500.0, "max": 2000.0}
NO_LATENCY = dict.fromkeys(LATENCY)


def _tier(name: str, hits: int, **changed: Any) -> dict[str, Any]:
    return {
        "name": name,
        "engine": "numba",
        "lookups": 1000,
        "hits": hits,
        "hit_rate": hits / 1000,
        "device_reads": hits,
        "device_writes": 3,
        "read_bytes": hits * 4096,
        "evictions": 5,
        "bypasses": 0,
        "failures": 0,
        "coalescing_factor": 1.25,
        "iops": 13_400_000.0,
        "latency_us": LATENCY,
        **changed,
    }


@pytest.fixture
def result() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "mode": "replay",
        "complete": True,
        "trace": {
            "path": "traces/[sample].parquet",
            "kind": "page io",
            "requests": 2000,
            "scaled": False,
            "pages_per_block": None,
            "full_pages_per_block": None,
            "synthetic": [],
            "page_bytes": 4096,
        },
        "config": {},
        "environment": {},
        "seed": 1,
        "duration_s": 1.5,
        "warmup": None,
        "demand": {
            "reads": 1200,
            "delivered": 1190,
            "unique": 1100,
            "absent": 10,
            "late": 0,
            "bytes": 1190 * 4096,
            "iops": 793.0,
            "latency_us": LATENCY,
        },
        "batches": {"count": 12, "latency_us": LATENCY},
        "writes": {"objects": 0, "pages": 0, "bytes": 0},
        "coalescing": {"folded": 100, "joined": 40, "merged_extents": 7, "factor": 1.5},
        "tiers": [_tier("hbm", 500, hit_rate=0.5), _tier("dram", 300, hit_rate=0.3)],
        "origin": {
            "name": "tcp",
            "lookups": 250,
            "hits": 248,
            "failures": 2,
            "device_reads": 200,
            "read_bytes": 248 * 4096,
            "coalescing_factor": None,
            "iops": 100.0,
            "latency_us": NO_LATENCY,
        },
        "series": {"interval_s": 0.5, "t_s": [0.5], "reads": [1200], "hits": {"hbm": [500]}},
        "utilisation": None,
        "bottleneck": None,
        "verify": {"checked_pages": 70, "corrupt_pages": 0},
    }


def _console() -> Console:
    return Console(file=io.StringIO(), width=100)


def _printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _report(result: dict[str, Any]) -> str:
    console = _console()
    print_report(result, console)
    return _printed(console)


def test_a_sound_result_keeps_both_sums(result: dict[str, Any]) -> None:
    assert check_sums(result) == []


def test_the_sums_hold_without_an_origin(result: dict[str, Any]) -> None:
    result["origin"] = None
    result["demand"]["absent"] += 250
    assert check_sums(result) == []


def test_a_broken_sum_is_named_with_its_numbers(result: dict[str, Any]) -> None:
    result["coalescing"]["folded"] = 99
    result["coalescing"]["joined"] = 41
    assert check_sums(result) == [
        "not so: 1,200 reads = 1,100 unique + 99 folded",
        "not so: 1,100 unique = 800 tier hits + 41 joined + 248 origin hits + 2 failed + 10 absent",
    ]


def test_a_report_shows_every_level_with_its_rates(result: dict[str, Any]) -> None:
    lines = [" ".join(line.split()) for line in _report(result).splitlines()]
    for expected in (
        "hbm dram origin (tcp)",
        "engine numba numba -",
        "hits 500 300 248",
        "hit rate 50.0% 30.0% -",
        "IOPS (4 KiB) 13.4 M 13.4 M 100",
        "latency p99 120 us 120 us -",
    ):
        assert expected in lines


def test_a_report_shows_paths_with_brackets_as_they_are(result: dict[str, Any]) -> None:
    assert "traces/[sample].parquet (page io, 2,000 requests)" in _report(result)


def test_a_report_shows_coalescing_verification_and_sums(result: dict[str, Any]) -> None:
    text = _report(result)
    assert "folded 100, joined 40, merged extents 7, factor 1.50" in text
    assert "70 pages checked, 0 corrupt" in text
    assert "1,200 reads = 1,100 unique + 100 folded" in text
    assert "BROKEN" not in text


def test_a_broken_sum_is_loud(result: dict[str, Any]) -> None:
    result["demand"]["reads"] += 1
    text = _report(result)
    assert "SUMS BROKEN" in text
    assert "not so: 1,201 reads" in text


def test_labels_are_always_shown(result: dict[str, Any]) -> None:
    result["mode"] = "simulate"
    result["complete"] = False
    result["verify"] = None
    result["trace"] |= {
        "scaled": True,
        "pages_per_block": 4,
        "full_pages_per_block": 512,
        "synthetic": ["arrivals: spread evenly"],
    }
    text = " ".join(_report(result).split())
    for label in (
        "*modelled*",
        "*scaled: 4 of 512 pages per block*",
        "*synthetic: arrivals*",
        "*interrupted: measured until then*",
    ):
        assert label in text


def test_a_recorded_replay_bears_no_label(result: dict[str, Any]) -> None:
    assert "*" not in _report(result)


def test_an_interrupted_run_that_measured_nothing_can_be_shown(result: dict[str, Any]) -> None:
    result["tiers"] = [_tier("hbm", 0, hit_rate=None, latency_us=NO_LATENCY)]
    result["demand"] |= {"reads": 0, "unique": 0, "absent": 0, "iops": None}
    result["demand"]["latency_us"] = NO_LATENCY
    result["batches"] = {"count": 0, "latency_us": NO_LATENCY}
    result["coalescing"] = {"folded": 0, "joined": 0, "merged_extents": 0, "factor": None}
    result["origin"] = None
    assert "nothing measured" in _report(result)


def test_utilisation_names_the_bottleneck(result: dict[str, Any]) -> None:
    result |= {"utilisation": {"hbm": 0.5, "origin": 0.99}, "bottleneck": "origin"}
    assert "hbm 50%, origin 99%; bottleneck: origin" in _report(result)


def test_writes_are_shown_when_there_are_any(result: dict[str, Any]) -> None:
    result["writes"] = {"objects": 2, "pages": 512, "bytes": 2 << 20}
    assert "2 objects, 512 pages, 2 MiB" in _report(result)


def _modelled(result: dict[str, Any]) -> dict[str, Any]:
    """The same decisions, other times."""
    modelled = copy.deepcopy(result)
    modelled |= {"mode": "simulate", "duration_s": 0.001, "verify": None}
    modelled["origin"]["name"] = "modelled"
    for level in (*modelled["tiers"], modelled["origin"]):
        level |= {"iops": 1e9, "latency_us": NO_LATENCY}
    return modelled


def test_results_that_differ_in_time_alone_decide_the_same(result: dict[str, Any]) -> None:
    console = _console()
    print_side_by_side([result, _modelled(result)], console)
    assert differing_decisions([result, _modelled(result)]) == []
    assert "all decisions are the same" in _printed(console)


def test_a_decision_that_differs_is_named(result: dict[str, Any]) -> None:
    other = _modelled(result)
    other["tiers"][1]["evictions"] += 1
    other["origin"]["read_bytes"] += 1
    console = _console()
    print_side_by_side([result, other], console)
    assert differing_decisions([result, other]) == ["dram evictions", "origin read"]
    assert "decisions differ: dram evictions, origin read" in _printed(console)


def test_a_level_that_one_result_lacks_differs(result: dict[str, Any]) -> None:
    other = copy.deepcopy(result)
    other["tiers"].pop()
    assert "dram hits" in differing_decisions([result, other])


def test_side_by_side_has_a_column_for_each_result(result: dict[str, Any]) -> None:
    console = _console()
    print_side_by_side([result, _modelled(result), result], console)
    header = next(line for line in _printed(console).splitlines() if "replay" in line)
    assert header.split() == ["replay", "simulate", "replay"]


def test_json_is_written_whole_and_replaces_what_was_there(
    tmp_path: Path, result: dict[str, Any]
) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")
    write_json(target, result)
    assert json.loads(target.read_text()) == result
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("number", [math.nan, math.inf, np.float64("nan")])
def test_a_number_that_json_lacks_is_refused_and_leaves_nothing(
    tmp_path: Path, number: float
) -> None:
    with pytest.raises(KvtierError, match="holds a NaN or an infinity"):
        write_json(tmp_path / "result.json", {"iops": number})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "result.json").mkdir()
    (tmp_path / "result.json" / "x").touch()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "none" / "result.json")
    with pytest.raises(OSError, match="none"):
        write_json(link, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "result.json"]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    target, link = tmp_path / "result.json", tmp_path / "link.json"
    link.symlink_to(target)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert json.loads(target.read_text()) == {"a": 1}


def test_numpy_scalars_and_paths_become_json(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_json(target, {"a": np.int64(3), "b": np.float32(0.5), "c": Path("x"), "d": np.True_})
    assert json.loads(target.read_text()) == {"a": 3, "b": 0.5, "c": "x", "d": True}


def test_a_dash_writes_to_the_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    write_json(Path("-"), {"a": 1})
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_a_device_is_written_to_not_replaced() -> None:
    write_json(Path("/dev/null"), {"a": 1})
    assert Path("/dev/null").is_char_device()


def test_a_target_that_cannot_be_written_is_refused_early(tmp_path: Path) -> None:
    check_target(Path("-"))
    check_target(Path("/dev/null"))
    check_target(tmp_path / "result.json")
    with pytest.raises(SettingsError, match="there is no directory"):
        check_target(tmp_path / "none" / "result.json")
    with pytest.raises(SettingsError, match="is a directory"):
        check_target(tmp_path)


def test_a_mapping_without_a_layout_is_shown_as_tables() -> None:
    console = _console()
    values = {
        "rows": 12_345,
        "share": 0.5,
        "ordered": True,
        "licence": None,
        "synthetic": ["arrivals", "order"],
        "pages": {"least": 1, "most": 9},
        "metadata": {"kind": "page_io", "objects": [{"key": "index", "pages": 2}]},
        "columns": [{"name": "t_ns", "type": "int64"}, {"name": "page", "nulls": 0}],
    }
    print_mapping("trace.parquet", values, console)
    lines = [" ".join(line.split()) for line in _printed(console).splitlines()]
    for expected in (
        "rows 12,345",
        "share 0.5",
        "ordered yes",
        "licence -",
        "synthetic arrivals, order",
        "pages least 1, most 9",
        "kind page_io",
        "index 2",
        "name type nulls",
        "t_ns int64 -",
        "page - 0",
    ):
        assert expected in lines
