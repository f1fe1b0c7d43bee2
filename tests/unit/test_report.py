from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_results
from rich.console import Console
from small_results import NO_LATENCY, tier

from kvtier.errors import KvtierError, SettingsError
from kvtier.report.json_file import check_target, write_json
from kvtier.report.mapping import print_mapping
from kvtier.report.soundness import check_figures, check_sums
from kvtier.report.terminal import print_report


@pytest.fixture
def result() -> dict[str, Any]:
    return small_results.result()


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
    del result["by_purpose"]
    result["origin"] = None
    result["demand"]["absent"] += 250
    assert check_sums(result) == []


def test_a_broken_sum_is_named_with_its_numbers(result: dict[str, Any]) -> None:
    del result["by_purpose"]
    result["coalescing"]["folded"] = 99
    result["coalescing"]["joined"] = 41
    assert check_sums(result) == [
        "not so: 1,200 reads = 1,100 unique + 99 folded",
        "not so: 1,100 unique = 800 tier hits + 41 joined + 248 origin hits + 2 failed + 10 absent",
    ]


def test_the_sums_hold_for_each_purpose_too(result: dict[str, Any]) -> None:
    result["by_purpose"]["prefix"]["coalescing"]["folded"] += 1
    result["by_purpose"]["sparse"]["tiers"][1]["device_reads"] += 1
    assert check_sums(result) == [
        "not so: prefix: 700 reads = 640 unique + 61 folded",
        "not so: 100 folded = 61 prefix + 40 sparse",
        "not so: 300 dram device reads = 200 prefix + 101 sparse",
    ]


def test_reads_of_no_purpose_break_a_sum(result: dict[str, Any]) -> None:
    del result["by_purpose"]["sparse"]
    assert "not so: 1,200 reads = 700 prefix" in check_sums(result)


def test_a_report_shows_the_reads_of_each_purpose(result: dict[str, Any]) -> None:
    lines = [" ".join(line.split()) for line in _report(result).splitlines()]
    for expected in (
        "prefix sparse",
        "reads 700 500",
        "hbm hit rate 46.9% 43.5%",
        "origin device reads 80 120",
        "reads per origin read 8.75 4.17",
    ):
        assert expected in lines


def test_a_report_of_one_purpose_does_not_say_everything_twice(result: dict[str, Any]) -> None:
    del result["by_purpose"]["sparse"]
    assert "reads per origin read" not in _report(result)


def test_a_result_of_an_older_version_can_be_shown(result: dict[str, Any]) -> None:
    assert "hit rate" in _report(small_results.older(result))


def test_a_report_shows_every_level_with_its_rates(result: dict[str, Any]) -> None:
    lines = [" ".join(line.split()) for line in _report(result).splitlines()]
    for expected in (
        "hbm dram origin (tcp)",
        "engine numba numba -",
        "hits 500 300 248",
        "hit rate 45.5% 50.0% -",
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
    result["tiers"] = [tier("hbm", 0, 0, latency_us=NO_LATENCY)]
    result["demand"] |= {"reads": 0, "unique": 0, "absent": 0, "iops": None}
    result["demand"]["latency_us"] = NO_LATENCY
    result["batches"] = {"count": 0, "latency_us": NO_LATENCY}
    result["coalescing"] = {"folded": 0, "joined": 0, "merged_extents": 0, "factor": None}
    result["origin"] = None
    result["by_purpose"] = {}
    assert "nothing measured" in _report(result)


def test_utilisation_names_the_bottleneck(result: dict[str, Any]) -> None:
    result |= {"utilisation": {"hbm": 0.5, "origin": 0.99}, "bottleneck": "origin"}
    assert "hbm 50%, origin 99%; bottleneck: origin" in _report(result)


def test_writes_are_shown_when_there_are_any(result: dict[str, Any]) -> None:
    result["writes"] = {"objects": 2, "pages": 512, "bytes": 2 << 20}
    assert "2 objects, 512 pages, 2 MiB" in _report(result)


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
    with pytest.raises(KvtierError, match=r"link\.json: cannot be written: No such file"):
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


@pytest.mark.parametrize(
    ("key", "value", "flaw"),
    [
        ("duration_s", -1.5, "duration_s is -1.5, and nothing can be below 0"),
        ("tiers.0.device_reads", -2, "tiers.0.device_reads is -2, and"),
        ("demand.iops", -0.5, "demand.iops is -0.5, and"),
        ("utilisation.dram", -0.1, "utilisation.dram is -0.1, and"),
        ("utilisation.dram", 1.2, "utilisation.dram is 1.2, and a share cannot be above 1"),
        ("tiers.1.hit_rate", 1.5, "tiers.1.hit_rate is 1.5, and a share cannot be above 1"),
        ("bottleneck", "moon", "bottleneck is 'moon', which is no part of utilisation"),
    ],
)
def test_figures_that_cannot_be_are_loud(
    result: dict[str, Any], key: str, value: object, flaw: str
) -> None:
    result = small_results.modelled(result)
    assert check_figures(result) == []
    *path, last = key.split(".")
    part: Any = result
    for name in path:
        part = part[int(name)] if name.isdecimal() else part[name]
    part[last] = value
    assert [one[: len(flaw)] for one in check_figures(result)] == [flaw]
    assert "IMPOSSIBLE" in _report(result)


def test_rounded_times_and_settings_below_zero_are_no_flaws(result: dict[str, Any]) -> None:
    result = small_results.modelled(result)
    result["utilisation"]["origin"] = 1 + 1e-9
    result["config"]["offset"] = -1
    assert check_figures(result) == []


def test_a_report_says_which_hit_rate_each_station_takes(result: dict[str, Any]) -> None:
    text = " ".join(_report(small_results.modelled(result)).split())
    assert (
        "crossover dram, 13.4 M pages/s: keeps up from a hit rate of 97.4% on, it was 98.0%: does "
        "not bind origin, 13.4 M pages/s: keeps up from a hit rate of 97.4% on, it was 45.0%: binds"
    ) in text
    assert "crossover" not in _report(small_results.older(small_results.modelled(result)))
