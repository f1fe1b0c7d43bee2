"""Devices in virtual time, beside what a plain Python queue does."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.emulator import queueing
from kvtier.emulator.device import ModelledDevice, SteadyDevice
from kvtier.emulator.queueing import QueueingDevice, make_queue, serve_one
from kvtier.emulator.station import Server, Work
from kvtier.errors import SettingsError
from kvtier.jit import JIT_DISABLED
from kvtier.settings import (
    MODEL_PRESETS,
    DeviceModel,
    Settings,
    TierSettings,
    to_dict,
    validate,
)

PAGE_BYTES = 4096
PLAIN = DeviceModel(latency_s=100e-6, iops=1e5, bytes_per_s=1e9)
BATCHED = replace(PLAIN, batch=4)
THROTTLED = replace(PLAIN, sustained_iops=1e4, burst=20)

many_operations = pytest.mark.skipif(JIT_DISABLED, reason="minutes as plain Python")
arrivals = st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 9)), max_size=30)


def work(operations: int, *, pages: int | None = None, is_write: bool = False) -> Work:
    sizes = None if pages is None else np.full(operations, pages)
    return Work(np.zeros(operations, np.uint64), sizes, PAGE_BYTES, is_write)


def ends_us(station: Server, times_us: list[float]) -> list[float]:
    """When single operations that come at these times are done."""
    return [station.serve(round(at * 1e3), work(1)) / 1e3 for at in times_us]


@settings(deadline=None)  # the first example waits for the compiler
@given(arrivals)
def test_a_plain_model_as_a_queue_of_operations_is_the_closed_form(
    arrivals: list[tuple[int, int]],
) -> None:
    steady, queue = SteadyDevice(PLAIN), QueueingDevice(PLAIN)
    now_ns = 0
    for pause_ns, operations in arrivals:
        now_ns += pause_ns
        batch = work(operations)
        assert queue.serve(now_ns, batch) == pytest.approx(steady.serve(now_ns, batch), abs=1)
    assert queue.busy_ns == steady.busy_ns


def test_single_pages_pass_a_fast_device_at_its_rate() -> None:
    pages = 10_000
    device = SteadyDevice(DeviceModel(0.0, 3.8e9, 518e6 * PAGE_BYTES))
    ends = [device.serve(0, work(1)) for _ in range(pages)]
    assert ends[-1] == math.ceil(pages / 518e6 * 1e9)
    assert all(end >= (number + 1) / 518e6 * 1e9 for number, end in enumerate(ends))
    assert device.busy_ns == round(pages / 518e6 * 1e9)


@pytest.mark.parametrize(
    "figures",
    [
        {"tail_latency_s": 300e-6},
        {"batch": 4},
        {"sustained_iops": 1e4},
        {"write_latency_s": 1e-3},
        {"write_iops": 1e3},
        {"write_bytes_per_s": 1e6},
    ],
)
def test_every_further_figure_changes_what_a_device_does(figures: dict[str, float]) -> None:
    batches = [work(50), work(50, is_write=True)] * 2
    plain, other = ModelledDevice(PLAIN), ModelledDevice(replace(PLAIN, **figures))  # type: ignore[arg-type]
    assert [plain.serve(0, each) for each in batches] != [other.serve(0, each) for each in batches]


def test_an_operation_takes_the_slower_of_its_two_rates() -> None:
    assert QueueingDevice(PLAIN).serve(0, work(1)) == 110_000
    assert QueueingDevice(PLAIN).serve(0, work(1, pages=100)) == 100_000 + 409_600


def test_devices_alike_share_the_load() -> None:
    several = QueueingDevice(replace(PLAIN, devices=4, tail_latency_s=PLAIN.latency_s))
    assert several.serve(0, work(400)) == QueueingDevice(PLAIN).serve(0, work(100))


def test_writes_have_their_own_figures() -> None:
    model = replace(PLAIN, write_latency_s=10e-6, write_iops=1e4)
    assert QueueingDevice(model).serve(0, work(1)) == 110_000
    assert QueueingDevice(model).serve(0, work(1, is_write=True)) == 10_000 + 100_000


# -- the tail --------------------------------------------------------------------------------------


@many_operations
@pytest.mark.parametrize("batch", [None, 8])
def test_an_idle_device_has_the_median_and_the_99th_percentile_of_its_model(
    batch: int | None,
) -> None:
    model = DeviceModel(100e-6, 1e12, 1e18, tail_latency_s=400e-6, batch=batch)
    device = QueueingDevice(model)
    starts = np.arange(40_000) * 100_000_000
    latencies = np.array([device.serve(int(at), work(1)) - int(at) for at in starts])
    assert np.quantile(latencies, 0.5) == pytest.approx(100_000, rel=0.02)
    assert np.quantile(latencies, 0.99) == pytest.approx(400_000, rel=0.05)


def test_the_same_seed_gives_the_same_times_and_another_seed_others() -> None:
    model = replace(PLAIN, tail_latency_s=1e-3)
    times_us = [10.0 * number for number in range(50)]
    first = ends_us(ModelledDevice(model, 7), times_us)
    assert ends_us(ModelledDevice(model, 7), times_us) == first
    assert ends_us(ModelledDevice(model, 8), times_us) != first


def test_a_batch_is_stretched_as_a_whole() -> None:
    device = QueueingDevice(replace(BATCHED, tail_latency_s=1e-3))
    ends = np.array([device.serve(0, work(1)) for _ in range(4)])
    # 100 us for all, then 10 us for each: the same ratio whatever the factor.
    assert np.diff(ends) / ends[0] == pytest.approx(10 / 110, rel=1e-3)


# -- batches ---------------------------------------------------------------------------------------


def test_operations_that_wait_pay_one_latency_together() -> None:
    # The first finds the device idle. The next three wait for it, and then go together.
    ends = ends_us(QueueingDevice(BATCHED), [0, 20, 30, 40])
    assert ends == pytest.approx([110, 220, 230, 240], abs=0.01)


def test_a_full_batch_leaves_the_rest_to_the_next() -> None:
    ends = ends_us(QueueingDevice(BATCHED), [0] * 6)
    assert ends == pytest.approx([110, 120, 130, 140, 250, 260], abs=0.01)


@given(st.lists(st.integers(0, 150), min_size=1, max_size=60))
def test_batches_are_those_of_a_plain_queue(pauses_us: list[int]) -> None:
    times_us = [float(at) for at in np.cumsum(pauses_us)]
    expected: list[float] = []
    waiting = list(times_us)
    free_us = 0.0
    while waiting:
        start_us = max(free_us, waiting[0])
        taken = [at for at in waiting[:4] if at <= start_us]
        waiting = waiting[len(taken) :]
        expected += [start_us + 100 + 10 * (place + 1) for place in range(len(taken))]
        free_us = expected[-1]
    assert ends_us(QueueingDevice(BATCHED), times_us) == pytest.approx(expected, abs=0.01)


# -- the throttle ----------------------------------------------------------------------------------


def test_a_burst_passes_at_once_and_the_rest_at_the_sustained_rate() -> None:
    done = ends_us(QueueingDevice(replace(THROTTLED, iops=1e6, bytes_per_s=1e10)), [0] * 40)
    assert done[19] == pytest.approx(100 + 20)
    assert np.diff(done[20:]) == pytest.approx(100)  # 10,000 per second


def test_a_pause_fills_the_bucket_but_never_beyond_the_burst() -> None:
    device = QueueingDevice(THROTTLED)
    device.serve(0, work(20))
    half, full = 10**6, 10**9  # ns; half of the bucket takes 1 ms
    assert device.serve(half, work(10)) - half == 100_000 + 10 * 10_000
    assert device.serve(full, work(20)) - full == 100_000 + 20 * 10_000
    assert device.serve(full, work(1)) - full > 100_000 + 10_000


def test_a_refill_in_steps_lets_whole_steps_through() -> None:
    model = replace(THROTTLED, burst=100, refill_s=10e-3)  # 100 tokens every 10 ms
    done = np.array(ends_us(QueueingDevice(model), [0] * 350))
    assert list(np.bincount((done // 10_000).astype(int))) == [100, 100, 100, 50]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3_000), min_size=1, max_size=80),
    st.sampled_from([None, 1e-3, 4e-3]),
    st.integers(1, 30),
)
def test_the_throttle_never_lets_more_through_than_its_tokens(
    pauses_us: list[int], refill_s: float | None, burst: int
) -> None:
    # An instant device: an operation is done when it is let through.
    model = DeviceModel(0, 1e15, 1e18, sustained_iops=1e4, burst=burst, refill_s=refill_s)
    times_us = [float(at) for at in np.cumsum(pauses_us)]
    done_us = ends_us(QueueingDevice(model), times_us)
    step = 1.0 if refill_s is None else 1e4 * refill_s
    bucket = max(burst, step)
    for first in range(len(done_us)):
        for last in range(first, len(done_us)):
            passed_s = (done_us[last] - done_us[first]) / 1e6
            # A window may begin just before a step.
            assert last - first + 1 <= bucket + 1e4 * passed_s + step + 1e-3
    assert all(end >= at for at, end in zip(times_us, done_us, strict=True))
    assert all(a <= b for a, b in pairwise(done_us))


# -- as a station ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [BATCHED, THROTTLED, replace(PLAIN, tail_latency_s=2e-3)])
def test_a_call_is_served_as_its_operations_one_by_one(
    model: DeviceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one, whole = QueueingDevice(model), QueueingDevice(model)
    expected = max(one_by_one.serve(5, work(1, pages=3)) for _ in range(50))
    monkeypatch.setattr(queueing, "_OPERATIONS_PER_CALL", 7)
    assert whole.serve(5, work(50, pages=3)) == expected
    assert whole.busy_ns == one_by_one.busy_ns


@many_operations
@pytest.mark.parametrize("model", [BATCHED, THROTTLED, replace(PLAIN, tail_latency_s=2e-3)])
def test_a_device_is_never_busy_for_longer_than_the_time(model: DeviceModel) -> None:
    device = ModelledDevice(replace(model, write_iops=5e4))
    end_ns = max(device.serve(1000 * at, work(3, is_write=at % 2 == 0)) for at in range(500))
    assert 0 < device.busy_ns <= end_ns


def test_no_work_takes_no_time() -> None:
    assert QueueingDevice(THROTTLED).serve(77, work(0)) == 77


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"tail_latency_s": 50e-6}, "tail_latency is 50 us: it must be from 100 us"),
        ({"tail_latency_s": 1.0}, "tail_latency is 1 s: it must be from 100 us to 100 ms"),
        ({"latency_s": 0.0, "tail_latency_s": 1e-6}, "tail_latency: a latency of 0 has no tail"),
        ({"batch": 0}, "batch is 0: it must be from 1"),
        ({"burst": 5}, "burst is of a throttle: give tiers.nvme.model.sustained_iops too"),
        ({"refill_s": 5.0}, "refill is of a throttle"),
        ({"sustained_iops": 0.0}, "sustained_iops is 0.0"),
        ({"sustained_iops": 1.0, "burst": 0}, "burst is 0"),
        ({"sustained_iops": 1.0, "refill_s": 0.0}, "refill is 0 ns"),
        (
            {"sustained_iops": 1e4, "refill_s": 10e-3, "burst": 99},
            "burst is 99: it must hold one step of the throttle, 100 operations",
        ),
        (
            {"sustained_iops": 1e9, "refill_s": 3600.0},
            "refill is 60 min: a step of 3.6e+12 operations",
        ),
        ({"write_latency_s": -1.0}, "write_latency is"),
        ({"write_iops": 0.0}, "write_iops is 0.0"),
        ({"write_bytes_per_s": 0.0}, "write_bandwidth is 0 B/s"),
    ],
)
def test_a_figure_out_of_range_is_refused(figures: dict[str, float], message: str) -> None:
    model = replace(PLAIN, **figures)  # type: ignore[arg-type]
    with pytest.raises(SettingsError) as refusal:
        validate(Settings(tiers=(TierSettings("nvme", 1 << 20, model=model),)))
    assert str(refusal.value).startswith(f"tiers.nvme.model.{message}")


def test_a_description_names_the_figures_that_were_given() -> None:
    tier = TierSettings("nvme", 1 << 20, model=BATCHED)
    described = to_dict(Settings(tiers=(tier,)))["tiers"][0]["model"]
    assert described["batch"] == 4
    assert "burst" not in described


# -- object stores --------------------------------------------------------------------------------

STORES = [("s3-standard", 5_500, 10e-3), ("s3-express", 2_000_000, 1e-3)]


@pytest.mark.parametrize(("name", "limit", "step_s"), STORES)
@pytest.mark.parametrize("devices", [1, 4])
def test_an_object_store_never_lets_more_through_than_its_limit(
    name: str, limit: int, step_s: float, devices: int
) -> None:
    """In no interval, whatever comes: all at once, after a pause, or a little now and then."""
    store = replace(MODEL_PRESETS[name].model, latency_s=1e-12, tail_latency_s=None)
    queue = make_queue(replace(store, devices=devices))
    rng = np.random.default_rng(1)
    bursts = rng.integers(1, 4 * limit * step_s * devices, 40)
    begins_ns = np.repeat(np.cumsum(rng.exponential(step_s * 1e9, 40)), bursts)
    through_s = np.array([serve_one(queue, now_ns, 512, False) for now_ns in begins_ns]) / 1e9
    step = limit * step_s * devices
    for steps in (1, 8, 20):
        window_s = (steps - 0.5) * step_s
        within = np.searchsorted(through_s, through_s + window_s) - np.arange(through_s.size)
        assert within.max() <= (steps + 1) * step  # those of the bucket come on top
    assert within.max() > 0.9 * limit * devices * window_s


@pytest.mark.parametrize(("name", "limit", "step_s"), STORES)
def test_latencies_of_an_object_store_follow_its_tail(name: str, limit: int, step_s: float) -> None:
    model = MODEL_PRESETS[name].model
    assert model.tail_latency_s is not None
    queue = make_queue(model)
    gap_ns = 2e9 / limit  # at half of its limit nothing waits
    comes_ns = np.arange(20_000) * gap_ns + step_s * 1e9
    took_s = np.array([serve_one(queue, now_ns, 512, False) - now_ns for now_ns in comes_ns]) / 1e9
    assert np.median(took_s) == pytest.approx(model.latency_s, rel=0.02)
    assert np.quantile(took_s, 0.99) == pytest.approx(model.tail_latency_s, rel=0.03)


def test_a_throttle_that_binds_is_busy_all_the_time() -> None:
    device = ModelledDevice(MODEL_PRESETS["s3-standard"].model)
    end_ns = device.serve(0, work(11_000))
    assert device.busy_ns == pytest.approx(2e9, rel=0.01)
    assert end_ns == pytest.approx(2.1e9, rel=0.1)
