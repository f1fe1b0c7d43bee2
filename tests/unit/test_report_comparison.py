"""Which results belong together, which must decide alike, and how they stand side by side."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import small_results
from rich.console import Console
from small_results import modelled

from kvtier.report.comparison import agreements, differing_decisions, groups_of, lines_of
from kvtier.report.rows import Row, find
from kvtier.report.sections import every_number, headline, shares
from kvtier.report.side_by_side import print_side_by_side


@pytest.fixture
def result() -> dict[str, Any]:
    return small_results.result()


def _printed(*results: dict[str, Any], width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_side_by_side(results, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_results_that_differ_in_time_alone_decide_the_same(result: dict[str, Any]) -> None:
    assert differing_decisions([result, modelled(result)]) == []
    assert "replay = simulate: every decision is the same" in _printed(result, modelled(result))


def test_a_decision_that_differs_is_named(result: dict[str, Any]) -> None:
    other = modelled(result)
    other["tiers"][1]["evictions"] += 1
    other["by_purpose"]["sparse"]["origin"]["read_bytes"] += 1
    expected = ["dram evictions", "sparse: origin bytes read"]
    assert differing_decisions([result, other]) == expected
    sentence = f"replay, simulate: decisions differ: {', '.join(expected)}"
    assert sentence in _lines(_printed(result, other))


def test_a_level_that_one_result_lacks_differs(result: dict[str, Any]) -> None:
    other = copy.deepcopy(result)
    other["origin"] = None
    del other["config"]["origin"]
    other["tiers"].pop()
    assert differing_decisions([result, other]) == []  # other settings, so nothing to compare
    broken = copy.deepcopy(result)
    del broken["tiers"][1]["hits"]
    assert differing_decisions([result, broken]) == ["dram hits"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2),
        ("config.chain.coalesce", False),
        ("config.replay.concurrency", 32),
        ("config.tiers.0.capacity_bytes", 4096),
        ("config.tiers.1.ways", 8),
        ("config.tiers.1.write_limit_bytes_per_s", 1e6),
        ("config.origin.merge_gap_pages", 3),
        ("trace.requests", 10),
        ("trace.page_bytes", 512),
        ("complete", False),
    ],
)
def test_decisions_under_other_settings_are_not_compared(
    key: str, value: object, result: dict[str, Any]
) -> None:
    other = modelled(result)
    parent, _, name = key.rpartition(".")
    (find(other, parent) if parent else other)[name] = value
    other["coalescing"]["folded"] += 1
    assert differing_decisions([result, other]) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("config.tiers.0.path", "/elsewhere"), ("config.device", "cuda"), ("config.model", {})],
)
def test_decisions_on_other_devices_are_compared(
    key: str, value: object, result: dict[str, Any]
) -> None:
    other = modelled(result)
    parent, _, name = key.rpartition(".")
    find(other, parent)[name] = value
    other["coalescing"]["folded"] += 1
    assert differing_decisions([result, other]) == ["coalescing folded"]


def test_what_an_older_version_did_not_count_is_no_difference(result: dict[str, Any]) -> None:
    assert differing_decisions([result, small_results.older(result)]) == []


def test_only_runs_that_must_agree_are_said_to_agree(result: dict[str, Any]) -> None:
    off = copy.deepcopy(result) | {"name": "off"}
    off["config"]["chain"]["coalesce"] = False
    (agreement,) = agreements(groups_of([off, result, modelled(result)])[0])
    assert agreement.sentence == "replay = simulate: every decision is the same"


def test_results_are_grouped_by_what_was_read(result: dict[str, Any]) -> None:
    other = copy.deepcopy(result)
    other["trace"]["path"] = "traces/other.parquet"
    groups = groups_of([result, other, modelled(result), other])
    assert [[run.number for run in group] for group in groups] == [[0, 2], [1, 3]]
    assert [[run.name for run in group] for group in groups] == [
        ["replay", "simulate"],
        ["replay", "replay (2)"],
    ]
    lines = _lines(_printed(result, other, modelled(result), other))
    assert "replay simulate" in lines
    assert "replay replay (2)" in lines
    assert sum(line.startswith("other.parquet") for line in lines) == 1


def test_levels_stand_in_their_order_whichever_run_comes_first(result: dict[str, Any]) -> None:
    off = copy.deepcopy(result) | {"name": "off", "tiers": [], "by_purpose": {}}
    lines = lines_of(groups_of([off, result])[0], headline)
    sections = list(dict.fromkeys(line.section for line in lines))
    levels = [name for name in sections if name in ("hbm", "dram", "origin")]
    assert levels == ["hbm", "dram", "origin"]


def test_side_by_side_shows_what_is_compared(result: dict[str, Any]) -> None:
    lines = _lines(_printed(result, modelled(result)))
    for expected in (
        "demand reads 1,200 1,200",
        "IOPS (4 KiB) 793 793",
        "hbm engine numba numba",
        "hit rate 45.5% 45.5%",
        "origin device reads 200 200",
        "reads per origin read 6.00 6.00",
        "prefix reads 700 700",
        "sparse reads 500 500",
        "reads per origin read 4.17 4.17",
        "verify pages checked 70 -",
    ):
        assert expected in lines


def test_four_results_fit_110_columns(result: dict[str, Any]) -> None:
    result["trace"] |= {"scaled": True, "pages_per_block": 4, "full_pages_per_block": 512}
    text = _printed(result, *(modelled(result) | {"name": f"storage-next {n}"} for n in range(3)))
    assert max(map(len, text.splitlines())) <= 110
    assert "…" not in text
    assert len(text.splitlines()) < 70


def test_a_broken_sum_is_loud_side_by_side(result: dict[str, Any]) -> None:
    result["demand"]["reads"] += 1
    assert "SUMS BROKEN" in _printed(result, modelled(result))


def test_a_quotient_of_nothing_is_nothing(result: dict[str, Any]) -> None:
    row = Row("share", "coalescing.folded / demand.reads", str)
    assert row.value(result) == 100 / 1200
    assert row.value({}) is None
    result["demand"]["reads"] = 0
    assert row.show(result) == "-"


def test_shares_add_up_to_all_reads(result: dict[str, Any]) -> None:
    whole = [row.value(result) for row in shares(result)]
    prefix = shares(result["by_purpose"]["prefix"], "by_purpose.prefix")
    assert sum(whole) == pytest.approx(1)
    assert sum(row.value(result) for row in prefix) == pytest.approx(1)


def test_no_two_rows_of_a_table_have_one_name(result: dict[str, Any]) -> None:
    for sections in (headline, every_number):
        titles = [(one.title, row.label) for one in sections(result) for row in one.rows]
        assert len(titles) == len(set(titles))
