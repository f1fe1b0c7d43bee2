"""Targets, prices, the grid, the search, wear and break-even: what ``size`` is made of."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.errors import SettingsError
from kvtier.pages import I64
from kvtier.settings import DeviceModel, load_settings
from kvtier.sizing import Target, load_prices, parse_bounds, parse_target
from kvtier.sizing.configuration import configuration_toml
from kvtier.sizing.economics import YEARS_MAX, between, break_even_s, format_years, wear
from kvtier.sizing.grid import SIZES, Scale, build_grid, sizes_of
from kvtier.sizing.prices import PRESETS, Price
from kvtier.sizing.search import Search
from kvtier.sizing.terminal import dollars, interval

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("hit_rate=0.5", Target("hit_rate", 0.5)),
        ("hit_rate=50%", Target("hit_rate", 0.5)),
        ("p99=2ms", Target("p99", 0.002)),
        ("p50=80 us", Target("p50", 80e-6)),
        ("iops=1M", Target("iops", 1e6)),
        ("origin_iops=1.5k", Target("origin_iops", 1500)),
        ("years=5", Target("years", 5)),
        ("years=2.5 years", Target("years", 2.5)),
    ],
)
def test_a_target_is_a_metric_and_a_bound(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hit_rate", "--target hit_rate: write --target NAME=VALUE"),
        ("hitrate=0.5", "unknown target hitrate; did you mean hit_rate?"),
        ("colour=1", "unknown target colour; there are hit_rate, "),
        ("hit_rate=1.5", "--target hit_rate: '1.5' is no share"),
        ("hit_rate=-0.5", "'-0.5' is no share"),
        ("hit_rate=nan", "'nan' is no share"),
        ("hit_rate=101%", "'101%' is no share"),
        ("p99=2", "--target p99: '2' is no time; write e.g. '80 us'"),
        ("iops=many", "'many' is no count per second"),
        ("iops=1e6", "'1e6' is no count per second"),
        ("years=soon", "'soon' is no number of years"),
    ],
)
def test_what_is_no_target_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        parse_target(text)
    assert complaint in str(refusal.value)


def test_a_target_bounds_from_its_own_side_and_nothing_measured_misses_it() -> None:
    rate, latency = parse_target("hit_rate=0.5"), parse_target("p99=1ms")
    assert [rate.is_met(value) for value in (0.4, 0.5, 0.6, None)] == [False, True, True, False]
    assert [latency.is_met(value) for value in (5e-4, 1e-3, 2e-3, None)] == [
        *(True, True, False, False)
    ]
    assert (str(rate), str(latency)) == ("hit_rate >= 50.00%", "p99 <= 1 ms")


def test_break_even_of_1987_is_400_seconds() -> None:
    # Gray and Putzolu: a disk gives 15 accesses/s, $2,000 for each; memory is $5 a kilobyte.
    seconds = break_even_s(
        pages_per_mib=1000,
        accesses_per_s=15,
        dollars_per_device=15 * 2000,
        dollars_per_mib=5000,
    )
    assert seconds == pytest.approx(400)


def test_break_even_of_1997_is_266_seconds() -> None:
    # Gray and Graefe: pages of 8 KB, 64 accesses/s of a disk of $2,000, memory at $15 per MB.
    seconds = break_even_s(
        pages_per_mib=128, accesses_per_s=64, dollars_per_device=2000, dollars_per_mib=15
    )
    assert seconds == pytest.approx(266, abs=1)


def test_break_even_counts_the_slowest_of_operations_throttle_and_bandwidth() -> None:
    upper, lower = ("dram", Price(4, GIB, "")), ("nvme", Price(0.5, 1000 * GIB, ""))
    by_operations = between(upper, lower, DeviceModel(0, 1e6, 1e12), 4096)
    by_bandwidth = between(upper, lower, DeviceModel(0, 1e9, 4096e3), 4096)
    assert (by_operations.accesses_per_s, by_bandwidth.accesses_per_s) == (1e6, 1e3)
    throttled = between(upper, lower, DeviceModel(0, 1e6, 1e12, sustained_iops=1e4), 4096)
    assert throttled.accesses_per_s == 1e4
    assert by_operations.dollars_per_device == 500
    # 256 pages of a MiB that costs 4/1024 dollars, against a million accesses for 500 dollars.
    assert by_operations.interval_s == pytest.approx(256 / 1e6 * 500 / (4 / 1024))


def test_a_tier_has_the_share_of_the_endurance_that_its_capacity_buys() -> None:
    price = Price(1, 1000 * GIB, "", drive_writes_per_day=2, warranty_years=5)
    # The trace of an hour writes the tier once: 24 times a day, against 2 a day for 5 years.
    worn = wear(price, 100 * GIB, 100 * GIB, 3600)
    assert worn is not None
    assert worn.written_bytes_per_day == 24 * 100 * GIB
    assert worn.drive_writes_per_day == pytest.approx(24)
    assert worn.years == pytest.approx(5 * 2 / 24)


def test_what_is_not_written_lasts_and_memory_does_not_wear() -> None:
    price = Price(1, GIB, "", drive_writes_per_day=1, warranty_years=5)
    unwritten = wear(price, GIB, 0, 1)
    assert unwritten is not None
    assert unwritten.years == YEARS_MAX
    assert wear(PRESETS["dram"], GIB, GIB, 1) is None


def test_sizes_are_powers_of_two_around_what_the_trace_touches() -> None:
    sizes = sizes_of("dram", 100 * MIB, 64 * KIB, None)
    assert sizes == [256 * MIB >> step for step in reversed(range(SIZES))]
    assert sizes_of("dram", 100 * KIB, 64 * KIB, None) == [64 * KIB, 128 * KIB, 256 * KIB]
    assert sizes_of("dram", 1, 64 * KIB, None) == [64 * KIB]


def test_a_bound_is_the_largest_size_and_one_that_holds_no_set_is_refused() -> None:
    assert sizes_of("hbm", 100 * GIB, 16 * GIB, 80 * GIB) == [
        size * GIB for size in (16, 32, 64, 80)
    ]
    assert sizes_of("hbm", 100 * GIB, 16 * GIB, 0) == []
    assert sizes_of("hbm", GIB, GIB, 1000 * GIB) == [GIB, 2 * GIB]
    with pytest.raises(SettingsError, match="--max hbm=1 GiB: the tier must hold one set at least"):
        sizes_of("hbm", 100 * GIB, 16 * GIB, GIB)


def test_bounds_are_read_by_tier() -> None:
    tiers = ("hbm", "dram")
    assert parse_bounds(["hbm=80GiB,dram=0"], tiers) == {"hbm": 80 * GIB, "dram": 0}
    assert parse_bounds(["hbm=1MiB", "dram=4096"], tiers) == {"hbm": MIB, "dram": 4096}
    for text, complaint in (
        ("hbm", "--max hbm: write --max TIER=SIZE"),
        ("disk=1GiB", "no tier disk here: hbm, dram"),
        ("hbm=1MiB,hbm=2MiB", "hbm has a bound already"),
        ("hbm=large", "--max hbm: 'large' is no size"),
    ):
        with pytest.raises(SettingsError) as refusal:
            parse_bounds([text], tiers)
        assert complaint in str(refusal.value)


def test_a_scaled_capacity_stands_for_the_full_one() -> None:
    scale = Scale(4, 512)
    assert scale.factor == 128
    assert scale.simulated(128 * MIB) == MIB
    assert scale.full(MIB) == 128 * MIB
    assert Scale(3, 512).full(1) == 171  # rounded up, so that one set remains one set


def test_a_grid_holds_every_combination_in_order_of_price() -> None:
    sizes = {"hbm": [GIB], "nvme": [GIB, 4 * GIB]}
    grid = build_grid(sizes, PRESETS)
    assert len(grid) == 2 * 3
    assert grid.capacities(0) == {"hbm": 0, "nvme": 0}
    assert (np.diff(grid.dollars) > 0).all()
    for number in range(len(grid)):
        capacities = grid.capacities(number)
        price = sum(PRESETS[name].dollars(size) for name, size in capacities.items())
        assert grid.dollars[number] == pytest.approx(price)


STEPS: I64 = build_grid(
    {name: [GIB << step for step in range(4)] for name in ("hbm", "dram", "nvme")},
    PRESETS,
).steps


def found(search: Search, meets: Any) -> list[int]:
    """Drive a search to its end; returns what it tried."""
    tried = []
    while (number := search.next()) is not None:
        tried.append(number)
        search.tell(number, meets=bool(meets[number]))
    assert len(tried) == len(set(tried))
    return tried


@given(st.tuples(*[st.floats(0.01, 1)] * 3), st.floats(0, 1), st.integers(0, 7))
def test_a_search_finds_the_cheapest_where_more_never_hurts(
    weights: tuple[float, ...], share: float, offset_seed: int
) -> None:
    # Each set of tiers has its own offset: leaving a tier out may help, having less of it not.
    offsets = np.random.default_rng(offset_seed).random(8)
    values = STEPS @ np.array(weights) + offsets[(STEPS > 0) @ np.array([1, 2, 4])]
    meets = values >= share * values.max()
    search = Search(STEPS)
    tried = found(search, meets)
    assert search.answer == np.flatnonzero(meets)[0]
    assert search.surprises == 0
    assert len(tried) < len(STEPS) // 3


def test_a_search_that_nothing_satisfies_tries_the_largest_of_every_set_of_tiers() -> None:
    search = Search(STEPS)
    tried = found(search, np.zeros(len(STEPS)))
    assert search.answer is None
    largest = {tuple(row) for row in itertools.product((0, 4), repeat=3)}
    assert largest <= {tuple(STEPS[number].tolist()) for number in tried}


@given(st.lists(st.booleans(), min_size=len(STEPS), max_size=len(STEPS)))
def test_an_exhaustive_search_assumes_nothing(meets: list[bool]) -> None:
    search = Search(STEPS, exhaustive=True)
    tried = found(search, meets)
    cheapest = meets.index(True) if True in meets else None
    assert search.answer == cheapest
    assert tried == list(range(len(STEPS) if cheapest is None else cheapest + 1))
    assert search.cheaper_untried == 0


@given(st.lists(st.booleans(), min_size=len(STEPS), max_size=len(STEPS)))
def test_an_answer_meets_the_target_and_its_cheaper_neighbours_miss_it(meets: list[bool]) -> None:
    search = Search(STEPS)
    tried = found(search, meets)
    if search.answer is None:
        assert not any(meets[number] for number in tried)
        return
    assert meets[search.answer]
    mine = STEPS[search.answer]
    for tier in np.flatnonzero(mine):
        for step in {int(mine[tier]) - 1, 0}:
            neighbour = mine.copy()
            neighbour[tier] = step
            number = int(np.flatnonzero((neighbour == STEPS).all(axis=1))[0])
            assert number in tried
            assert not meets[number]


def test_a_surprise_is_counted_and_the_search_goes_on_from_it() -> None:
    # One tier: of its sizes 1 to 4 only 2 is large enough by chance, and then 4.
    steps = np.arange(5, dtype=np.int64).reshape(-1, 1)
    search = Search(steps)
    search.tell(3, meets=False)
    search.tell(4, meets=True)
    assert search.next() == 0
    search.tell(0, meets=False)
    # 3 was tried, so nothing is left but what the assumption rules out; no neighbour is open.
    assert search.next() is None
    search.tell(2, meets=True)
    assert (search.answer, search.surprises) == (2, 1)
    assert search.next() == 1


def test_prices_change_key_by_key(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text('[dram]\ndollars_per_gib = 8\n[nvme]\ndevice = "8 TiB"\nwarranty_years = 3\n')
    prices = load_prices(file)
    assert prices["hbm"] == PRESETS["hbm"]
    assert prices["dram"].dollars_per_gib == 8
    assert prices["dram"].source.startswith("given in prices.toml; what is left out: assumed")
    assert prices["nvme"].device_bytes == 8192 * GIB
    assert prices["nvme"].warranty_years == 3
    assert prices["nvme"].drive_writes_per_day == PRESETS["nvme"].drive_writes_per_day


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[drm]", "unknown level drm; did you mean dram?"),
        ("dram = 5", "dram is 5: it must be a table, [dram]"),
        ("[dram]\nprice = 5", "unknown key dram.price; known here: dollars_per_gib, device, "),
        ("[dram]\ndollars_per_gib = -1", "dram.dollars_per_gib is -1: it must be from 1e-09 to"),
        ("[dram]\ndollars_per_gib = 1e300", "dram.dollars_per_gib is 1e+300: it must be from"),
        ("[dram]\ndollars_per_gib = 5e-324", "dram.dollars_per_gib is 5e-324: it must be from"),
        (f"[dram]\ndollars_per_gib = {'9' * 400}", "is no TOML: it holds a whole number of more"),
        (f"[dram]\ndollars_per_gib = {'[' * 999}", "is no TOML: it is nested too deeply"),
        ("[dram]\ndevice = 0", "dram.device is 0: it must be above 0"),
        ("[dram]\ndollars_per_gib = inf", "dram.dollars_per_gib is inf: it must be from 1e-09"),
        ("[dram]\ndollars_per_gib = true", "is True: it must be a number above 0"),
        ('[nvme]\ndevice = "4 disks"', "nvme.device: '4 disks' is no size"),
        ("[nvme]\nsource = 1", "nvme.source is 1: it must be a text"),
        ("[dram]\nwarranty_years = 5", "endurance is drive_writes_per_day and warranty_years"),
        ("[dram", "is no TOML"),
    ],
)
def test_wrong_prices_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as refusal:
        load_prices(file)
    assert "prices.toml" in str(refusal.value)
    assert complaint in str(refusal.value)


def test_every_preset_says_that_it_is_assumed_and_how_to_change_it() -> None:
    for price in PRESETS.values():
        assert price.source.startswith("assumed: ")
        assert price.source.endswith("change it with --prices")


CONFIG = """
seed = 7
[tiers.dram]
capacity = "64 MiB"
ways = 8
[tiers.dram.model]
preset = "pcie-gen5"
latency = "1.25 us"
[tiers.nvme]
capacity = "1 GiB"
admit = 0.5
direct = false
[origin]
backend = "file"
[origin.options]
"odd key" = "quote \\" backslash \\\\ tab \\t"
list = [1, 2.5, "three", [true]]
when = 2026-01-02T03:04:05
table = { inner = { deep = 1 }, empty = {} }
"""


def test_a_configuration_says_what_was_given_with_the_capacities_of_the_answer(
    tmp_path: Path,
) -> None:
    given_file, written = tmp_path / "given.toml", tmp_path / "written.toml"
    given_file.write_text(CONFIG)
    overrides = ["seed=9", "replay.concurrency=5"]
    answer = ["tiers.dram.capacity=1048576", "tiers.nvme.capacity=0"]
    result = {
        "environment": {"kvtier": "1"},
        "trace": {"path": "t.parquet", "scaled": True},
        "scale": 128.0,
        "targets": [{"name": "hit_rate", "bound": 0.5, "value": 0.6}],
        "answer": {"settings": answer, "levels": [{"name": "dram", "full_bytes": 128 * MIB}]},
    }
    written.write_text(configuration_toml(given_file, overrides, result))
    assert load_settings(written) == load_settings(given_file, [*overrides, *answer])
    assert written.read_text().startswith(
        "# Found by kvtier 1 size for t.parquet:\n"
        "# hit_rate >= 50.00%, reached 60.00%.\n"
        "# Scaled down by 128: at the full geometry dram 128 MiB.\n"
    )


def test_prices_and_long_times_are_shown_with_the_digits_that_matter() -> None:
    assert [dollars(value) for value in (0, 0.000123, 0.5, 12.3, 12345)] == [
        *("$0.00", "$0.000123", "$0.5", "$12.30", "$12,345")
    ]
    assert [interval(value) for value in (0.0004, 300, 4 * 3600, 86400 * 30)] == [
        *("400 us", "5 min", "4.0 h", "30.0 days")
    ]
    assert [format_years(value) for value in (300 / 86400 / 365, 2.6 / 365, 5, YEARS_MAX)] == [
        *("5 min", "2.6 days", "5 years", "1,000 years or more")
    ]
