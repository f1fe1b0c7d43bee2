from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.errors import LimitError
from kvtier.metrics import RELATIVE_ERROR, LatencyHistogram

_HOUR_NS = 3_600_000_000_000
_latencies = st.lists(
    st.one_of(st.integers(0, 200), st.integers(0, 10**7), st.integers(0, 2 * _HOUR_NS)),
    min_size=1,
    max_size=300,
)


def _histogram(values: list[int]) -> LatencyHistogram:
    histogram = LatencyHistogram()
    histogram.record(np.array(values, np.int64))
    return histogram


@given(values=_latencies, share=st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0]))
@settings(deadline=None, max_examples=300)
def test_quantiles_agree_with_numpy_within_half_a_bucket(values: list[int], share: float) -> None:
    exact = float(np.quantile(np.array(values), share, method="inverted_cdf"))
    assert math.isclose(
        _histogram(values).quantile_ns(share), exact, rel_tol=RELATIVE_ERROR, abs_tol=1e-9
    )


@given(values=_latencies)
@settings(deadline=None, max_examples=100)
def test_mean_and_maximum_are_exact(values: list[int]) -> None:
    summary = _histogram(values).summary_us()
    assert summary["mean"] == sum(values) / len(values) / 1e3
    assert summary["max"] == max(values) / 1e3


@given(left=_latencies, right=_latencies)
@settings(deadline=None, max_examples=50)
def test_merging_counts_as_if_recorded_together(left: list[int], right: list[int]) -> None:
    merged = _histogram(left)
    merged.merge(_histogram(right))
    together = _histogram(left + right)
    assert merged.count == together.count
    assert merged.summary_us() == together.summary_us()


@given(value=st.integers(0, 2 * _HOUR_NS), count=st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_one_latency_many_times_counts_as_an_array_of_it(value: int, count: int) -> None:
    histogram = LatencyHistogram()
    histogram.record_same(value, count)
    assert histogram.count == count
    assert histogram.summary_us() == _histogram([value] * count).summary_us()


def test_every_power_of_two_up_to_the_largest_i64_has_its_bucket() -> None:
    powers = [1 << bit for bit in range(63)]
    for value in (0, *powers, *(power - 1 for power in powers), (1 << 63) - 1):
        assert _histogram([value]).quantile_ns(0.5) == float(value)


def test_an_empty_histogram_has_no_percentiles() -> None:
    histogram = LatencyHistogram()
    histogram.record(np.empty(0, np.int64))
    assert histogram.count == 0
    assert histogram.summary_us() == {
        "mean": None,
        "p50": None,
        "p90": None,
        "p99": None,
        "p999": None,
        "max": None,
    }


def test_merging_an_empty_histogram_changes_nothing() -> None:
    histogram = _histogram([5, 7])
    before = histogram.summary_us()
    histogram.merge(LatencyHistogram())
    assert histogram.summary_us() == before


def test_a_negative_latency_is_refused_and_not_counted() -> None:
    histogram = LatencyHistogram()
    with pytest.raises(LimitError, match="-1 ns"):
        histogram.record(np.array([3, -1], np.int64))
    with pytest.raises(LimitError, match="-2 ns"):
        histogram.record_same(-2, 1)
    assert histogram.count == 0
