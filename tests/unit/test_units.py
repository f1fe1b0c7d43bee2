from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.errors import SettingsError
from kvtier.units import (
    format_bytes,
    format_count,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_rate,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0 B", 0),
        ("64 GiB", 64 << 30),
        ("1GiB", 1 << 30),
        ("1GB", 10**9),
        ("4kB", 4000),
        ("4KB", 4000),
        ("4 KiB", 4096),
        ("1.5 MiB", 3 << 19),
        (" 2 TiB ", 2 << 40),
        ("1.1 KiB", 1126),  # 1126.4: the nearest byte
        (4096, 4096),
    ],
)
def test_sizes_are_read_with_binary_and_decimal_units(text: object, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("80 us", 80e-6), ("80 µs", 80e-6), ("1.5 ms", 1.5e-3), ("3ns", 3e-9), ("2 min", 120.0)],
)
def test_times_are_read_with_their_unit(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "rate"), [("7 GB/s", 7e9), ("12.5GB/s", 12.5e9), ("1 MiB/s", float(1 << 20))]
)
def test_rates_are_read_with_their_unit(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


def test_a_wrong_size_says_what_a_right_one_looks_like() -> None:
    with pytest.raises(SettingsError) as refusal:
        parse_bytes("64 parsecs", "capacity")
    assert str(refusal.value) == "capacity: '64 parsecs' is no size; write e.g. '64 GiB'"


@pytest.mark.parametrize(
    "value", ["64", "", "GiB", "-1 GiB", "1 gib", "1 Gb", "nan B", "1e3 MB", "9" * 19 + "B"]
)
def test_text_that_is_no_size_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="is no size"):
        parse_bytes(value)


@pytest.mark.parametrize("value", [True, 1.5, None, [1]])
def test_a_value_that_is_neither_text_nor_int_is_no_size(value: object) -> None:
    with pytest.raises(SettingsError, match="is no size"):
        parse_bytes(value)


@pytest.mark.parametrize("value", [-1, 1 << 63, "9000000 PiB"])
def test_a_size_out_of_range_is_refused(value: object) -> None:
    with pytest.raises(SettingsError, match="out of range"):
        parse_bytes(value)


@pytest.mark.parametrize("parse", [parse_seconds, parse_rate])
@pytest.mark.parametrize("value", [80, 1.5, "80", "80 GiB", "7 Gb/s", "-1 us", True])
def test_times_and_rates_need_their_unit(parse: Callable[[object], float], value: object) -> None:
    with pytest.raises(SettingsError, match=r"write e\.g\."):
        parse(value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (513, "513 B"),
        (1023, "1023 B"),
        (4096, "4 KiB"),
        (3 << 19, "1.50 MiB"),
        (64 << 30, "64 GiB"),
        ((1 << 30) - 1, "1 GiB"),
    ],
)
def test_sizes_are_shown_in_binary_units(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_counts_rates_and_times_are_shown_short() -> None:
    assert [format_count(count) for count in (0, 950, 13_400, 999_999, 150e6)] == [
        "0",
        "950",
        "13.4 k",
        "1.00 M",
        "150 M",
    ]
    assert [format_rate(rate) for rate in (7e9, 1.25e6)] == ["7 GB/s", "1.25 MB/s"]
    assert [format_seconds(t) for t in (0.0, 80e-6, 60 * 1e-6, 1.5e-3, 0.25, 12.34, 300)] == [
        "0 ns",
        "80 us",
        "60 us",
        "1.50 ms",
        "250 ms",
        "12.3 s",
        "5 min",
    ]


@given(size=st.integers(0, 1 << 53))
@settings(deadline=None, max_examples=200)
def test_a_shown_size_reads_back_within_its_digits(size: int) -> None:
    assert math.isclose(parse_bytes(format_bytes(size)), size, rel_tol=6e-3)


@given(seconds=st.floats(1e-9, 1e5))
@settings(deadline=None, max_examples=200)
def test_a_shown_time_reads_back_within_its_digits(seconds: float) -> None:
    assert math.isclose(parse_seconds(format_seconds(seconds)), seconds, rel_tol=6e-3)
