"""Calibration without a clock: emulated devices are measured, and their models found again."""

import errno
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.calibration import (
    Calibration,
    Load,
    Operations,
    calibrate,
    calibrating,
    closed_loop,
    measuring,
    predict,
    ring_load,
)
from kvtier.calibration.explaining import explain
from kvtier.calibration.fitting import compare, fit_model
from kvtier.calibration.host import HostCost, measure_host, median_of
from kvtier.calibration.measuring import (
    Measured,
    Throttle,
    find_throttle,
    measure_loads,
    plan_loads,
    summarise,
)
from kvtier.calibration.running import LoadEngine, choose_engine, run_load
from kvtier.calibration.target import SIZE_BYTES_MIN, Target, _doubts, _mounted, open_target
from kvtier.calibration.writing import describe_load, to_mapping, to_text, to_toml
from kvtier.errors import DeviceError, SettingsError
from kvtier.io.file import open_file
from kvtier.jit import JIT_DISABLED
from kvtier.settings import (
    DeviceModel,
    HostSettings,
    OriginSettings,
    Settings,
    TierSettings,
    load_settings,
    validate,
)

PAGE_BYTES = 4096
DRIVE = DeviceModel(80e-6, 5e5, 3e9, tail_latency_s=150e-6)
GUEST = DeviceModel(24e-6, 7e4, 9e8, tail_latency_s=40e-6, batch=128)
WRITER = replace(GUEST, write_latency_s=15e-6, write_iops=1.5e5, write_bytes_per_s=2e9)
THROTTLED = replace(DRIVE, sustained_iops=2e4, burst=100_000)

HOST = HostSettings(1.25e-4, 1.5e-4, 6.5e-7, 7.11e-4, 4.76e-6)
ORIGIN = DeviceModel(2e-4, 1e5, 5e9)

compiled = pytest.mark.skipif(JIT_DISABLED, reason="minutes as plain Python")


def measured(model: DeviceModel, *, writes: bool = False, seed: int = 99) -> list[Measured]:
    """What a calibration would find on an emulated device."""
    loads = plan_loads(PAGE_BYTES, writes=writes)
    return [summarise(load, [predict(model, load, seed)]) for load in loads]


# -- prediction ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "iops"), [(1, 1e4), (5, 5e4), (16, 1e5), (64, 1e5)])
def test_overlapping_latencies_reach_the_operation_rate(depth: int, iops: float) -> None:
    model = DeviceModel(90e-6, 1e5, 1e12)  # 100 us for an operation alone
    assert predict(model, Load(depth, PAGE_BYTES), rounds=10).iops == pytest.approx(iops, rel=0.01)


@pytest.mark.parametrize("depth", [1, 4, 16])
def test_batched_latencies_are_paid_by_every_round(depth: int) -> None:
    model = DeviceModel(90e-6, 1e5, 1e12, batch=16)
    iops = depth / (90e-6 + depth * 10e-6)
    assert predict(model, Load(depth, PAGE_BYTES), rounds=50).iops == pytest.approx(iops, rel=0.01)


def test_a_closed_loop_never_has_more_than_its_depth_under_way() -> None:
    done = closed_loop(GUEST, Load(8, PAGE_BYTES), 500)
    under_way = [
        int(((done.starts_ns <= at) & (done.ends_ns > at)).sum()) for at in done.starts_ns[:-8]
    ]
    assert set(under_way) == {8}
    assert list(done.ends_ns) == sorted(done.ends_ns)


@compiled
def test_a_prediction_is_of_the_time_after_a_burst() -> None:
    done = predict(THROTTLED, Load(16, PAGE_BYTES))
    assert done.iops == pytest.approx(2e4, rel=0.02)
    assert closed_loop(THROTTLED, Load(16, PAGE_BYTES), 10_000).iops > 1e5


def test_a_mixed_load_lies_between_reads_and_writes() -> None:
    reads, mix, writes = (
        predict(WRITER, Load(16, PAGE_BYTES, share), rounds=50).iops for share in (0.0, 0.3, 1.0)
    )
    assert reads < mix < writes


# -- fitting ---------------------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize("model", [DRIVE, GUEST], ids=["overlapping", "batched"])
def test_the_model_of_an_emulated_device_is_found_again(model: DeviceModel) -> None:
    found = fit_model(measured(model), None)
    assert (found.batch is None) == (model.batch is None)
    assert found.latency_s == pytest.approx(model.latency_s, rel=0.1)
    assert found.iops == pytest.approx(model.iops, rel=0.1)
    assert found.bytes_per_s == pytest.approx(model.bytes_per_s, rel=0.1)
    for fit in compare(found, measured(model, seed=5)):
        assert abs(fit.iops_error) < 0.05
        assert abs(fit.p99_error) < 0.15


@compiled
def test_writes_are_fitted_apart_and_the_mix_is_only_predicted() -> None:
    loads = measured(WRITER, writes=True)
    unmixed = [each for each in loads if each.load.write_share in {0.0, 1.0}]
    found = fit_model(loads, None)
    assert found == fit_model(unmixed, None)
    assert found.write_iops == pytest.approx(WRITER.write_iops, rel=0.1)
    assert found.iops == pytest.approx(WRITER.iops, rel=0.1)
    assert max(abs(fit.iops_error) for fit in compare(found, loads)) < 0.05


@compiled
@pytest.mark.parametrize("refill_s", [None, 0.05])
def test_a_throttle_is_found_with_its_burst_and_its_steps(refill_s: float | None) -> None:
    model = replace(THROTTLED, refill_s=refill_s)
    throttle = find_throttle(closed_loop(model, Load(64, PAGE_BYTES), 160_000))
    assert throttle is not None
    assert throttle.sustained_iops == pytest.approx(2e4, rel=0.1)
    assert throttle.peak_iops == pytest.approx(5e5, rel=0.1)
    assert throttle.burst == pytest.approx(100_000, rel=0.1)
    assert throttle.refill_s == (None if refill_s is None else pytest.approx(refill_s, rel=0.1))
    found = fit_model(measured(model), throttle)
    assert found.sustained_iops == pytest.approx(2e4, rel=0.1)


@compiled
def test_a_fitted_throttle_lets_a_whole_step_through_at_once() -> None:
    throttle = Throttle(peak_iops=8e4, sustained_iops=2e4, burst=10, refill_s=10e-3)
    model = fit_model(measured(replace(DRIVE, sustained_iops=2e4)), throttle)
    assert model.burst is not None
    assert model.sustained_iops is not None
    assert model.refill_s is not None
    assert model.burst >= model.sustained_iops * model.refill_s
    validate(Settings(tiers=(TierSettings("nvme", 1 << 20, model=model),)))


def test_a_throttle_that_later_loads_exceed_was_none() -> None:
    moment = Throttle(peak_iops=7e4, sustained_iops=4e4, burst=1000, refill_s=None)
    assert fit_model(measured(GUEST), moment) == fit_model(measured(GUEST), None)


@compiled
@pytest.mark.parametrize("model", [DRIVE, GUEST])
def test_a_device_without_a_throttle_has_none(model: DeviceModel) -> None:
    assert find_throttle(closed_loop(model, Load(64, PAGE_BYTES), 100_000)) is None


def test_a_load_too_short_to_show_a_throttle_shows_none() -> None:
    assert find_throttle(closed_loop(GUEST, Load(4, PAGE_BYTES), 100)) is None


def test_turns_are_summed_up_by_their_medians() -> None:
    turns = [
        Operations(np.zeros(10, np.int64), np.arange(1, 11) * scale)
        for scale in (1000, 2000, 10_000)
    ]
    nothing = Operations(np.zeros(0, np.int64), np.zeros(0, np.int64))
    found = summarise(Load(1, PAGE_BYTES), [nothing, *turns])
    assert found.iops == pytest.approx(1 / 2e-6)
    assert found.iops_spread == pytest.approx(10)
    assert found.latency_p50_s == pytest.approx(11e-6)


def test_a_load_in_which_nothing_ended_is_refused() -> None:
    nothing = Operations(np.zeros(0, np.int64), np.zeros(0, np.int64))
    with pytest.raises(
        DeviceError, match=r"hardly an operation of 1 MiB ended in time; give more --sec"
    ):
        summarise(Load(1, 1 << 20), [nothing])


# -- what is measured ------------------------------------------------------------------------------


@pytest.fixture(params=["uring", "threads"])
def engine(request: pytest.FixtureRequest) -> LoadEngine:
    if request.param == "uring" and choose_engine() != "uring":
        pytest.skip("the system gives no io_uring")
    return cast("LoadEngine", request.param)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    rng = np.random.default_rng(1)
    with open_target(tmp_path, SIZE_BYTES_MIN, PAGE_BYTES, write=False, rng=rng) as target:
        yield target


def test_a_temporary_file_has_no_name_and_is_full_of_random_bytes(
    target: Target, tmp_path: Path
) -> None:
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(target.file.fd).st_size == target.size_bytes == SIZE_BYTES_MIN
    assert target.file.writable
    content = Path(f"/proc/self/fd/{target.file.fd}").read_bytes()
    counts = np.bincount(np.frombuffer(content, np.uint8), minlength=256)
    assert counts.min() > 0.9 * SIZE_BYTES_MIN / 256
    assert content[:PAGE_BYTES] != content[4 << 20 : (4 << 20) + PAGE_BYTES]


def test_the_file_is_closed_whatever_happens(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with (
        pytest.raises(KeyboardInterrupt),
        open_target(tmp_path, SIZE_BYTES_MIN, PAGE_BYTES, write=False, rng=rng),
    ):
        raise KeyboardInterrupt
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_load_keeps_its_depth_busy_and_its_stamps_in_order(
    target: Target, engine: LoadEngine
) -> None:
    done = run_load(target.file, target.size_bytes, Load(3, PAGE_BYTES), 0.2, _rng(), engine)
    assert len(done.ends_ns) > 3
    assert (done.ends_ns >= done.starts_ns).all()
    assert (np.diff(done.ends_ns) >= 0).all()
    order = np.sort(done.ends_ns)
    begun = np.searchsorted(np.sort(done.starts_ns), order, side="left")
    assert (begun - np.arange(len(order)) <= 3).all()
    assert done.iops > 0
    assert len(done.after(10**12).ends_ns) == 0


def test_every_place_of_a_load_operates_however_late_it_is(
    target: Target, engine: LoadEngine
) -> None:
    done = run_load(target.file, target.size_bytes, Load(3, PAGE_BYTES), 1e-9, _rng(), engine)
    assert len(done.ends_ns) == 3


def test_reads_leave_a_file_as_it_is_and_writes_need_permission(
    tmp_path: Path, engine: LoadEngine
) -> None:
    path = tmp_path / "kept"
    content = _rng().bytes(SIZE_BYTES_MIN)
    path.write_bytes(content)
    rng = _rng()
    with open_target(path, 1 << 40, PAGE_BYTES, write=False, rng=rng) as target:
        assert target.size_bytes == SIZE_BYTES_MIN
        assert not target.file.writable
        run_load(target.file, target.size_bytes, Load(2, PAGE_BYTES), 0.05, rng, engine)
        with pytest.raises(DeviceError, match="I/O failed: Bad file descriptor"):
            run_load(target.file, target.size_bytes, Load(2, PAGE_BYTES, 1.0), 0.05, rng, engine)
    assert path.read_bytes() == content
    with open_target(path, 1 << 40, PAGE_BYTES, write=True, rng=rng) as target:
        run_load(target.file, target.size_bytes, Load(2, PAGE_BYTES, 1.0), 0.05, rng, engine)
    assert path.stat().st_size == SIZE_BYTES_MIN
    assert path.read_bytes() != content


def test_a_file_that_becomes_shorter_ends_the_load(tmp_path: Path, engine: LoadEngine) -> None:
    path = tmp_path / "short"
    path.write_bytes(bytes(PAGE_BYTES))
    file = open_file(path, direct=False, size_bytes=None, create=False, page_bytes=PAGE_BYTES)
    try:
        with pytest.raises(DeviceError, match="it has become shorter; choose another path"):
            run_load(file, 1 << 30, Load(1, PAGE_BYTES), 1, _rng(), engine)
    finally:
        os.close(file.fd)


def test_an_interrupted_load_leaves_no_thread_behind(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    join = threading.Thread.join
    interrupts = iter([KeyboardInterrupt])

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        for interrupt in interrupts:
            raise interrupt
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_load(target.file, target.size_bytes, Load(4, PAGE_BYTES), 60, _rng(), "threads")
    assert threading.active_count() == before


def test_an_interrupted_ring_is_drained_and_given_back(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    if choose_engine() != "uring":
        pytest.skip("the system gives no io_uring")
    before = len(list(Path("/proc/self/fd").iterdir()))
    drive = ring_load._drive
    under_way: list[int] = []

    def interrupted(*arguments: Any) -> int:
        count = drive(*arguments)
        under_way.append(int(arguments[9][ring_load._UNDER_WAY]))
        if len(under_way) == 2:  # the first call only compiles
            raise KeyboardInterrupt
        return count

    monkeypatch.setattr(ring_load, "_drive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_load(target.file, target.size_bytes, Load(4, PAGE_BYTES), 60, _rng(), "uring")
    assert under_way[1] == 4
    assert under_way[-1] == 0
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_ring_that_cannot_be_entered_ends_the_load_and_keeps_its_memory(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    if choose_engine() != "uring":
        pytest.skip("the system gives no io_uring")
    lost: list[object] = []
    monkeypatch.setattr(ring_load, "_lost", lost)
    drive = ring_load._drive
    monkeypatch.setattr(
        ring_load, "_drive", lambda *each: -errno.EBADF if each[10] else drive(*each)
    )
    with pytest.raises(DeviceError, match="io_uring failed: Bad file descriptor"):
        run_load(target.file, target.size_bytes, Load(4, PAGE_BYTES), 60, _rng(), "uring")
    assert len(lost) == 1


def test_the_last_operations_of_a_load_say_nothing_of_its_rate() -> None:
    ends_ns = np.array([1, 2, 3, 4, 9]) * 1000
    done = Operations(np.zeros(5, np.int64), ends_ns, until_ns=5000)
    assert done.iops == pytest.approx(3 / 4e-6)
    assert done.after(0).iops == done.iops
    assert done.latency_s(1.0) == pytest.approx(9e-6)
    assert Operations(np.zeros(5, np.int64), ends_ns, until_ns=1500).iops == 0


def test_reads_are_measured_before_any_write(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[float] = []
    nothing = Operations(np.zeros(0, np.int64), np.zeros(0, np.int64))

    def noted(target: Target, load: Load, seconds: float, rng: np.random.Generator) -> Operations:
        ran.append(load.write_share)
        return nothing

    monkeypatch.setattr(measuring, "_run", noted)
    loads = [Load(1, PAGE_BYTES, 1.0), Load(1, PAGE_BYTES), Load(1, PAGE_BYTES, 0.3)]
    measure_loads(target, loads, 1.6, _rng(), lambda done, total: None)
    assert ran == [0.0] * 5 + [1.0, 0.3] * 5


def test_what_differs_from_turn_to_turn_has_little_say_in_a_model() -> None:
    loads = measured(GUEST)
    wrong = replace(loads[2], iops=loads[2].iops / 4, iops_noise=1.0, p99_noise=1.0)
    assert fit_model([*loads[:2], wrong, *loads[3:]], None).iops == pytest.approx(
        GUEST.iops, rel=0.1
    )
    steady = [Operations(np.zeros(9, np.int64), np.arange(1, 10) * 1000) for _ in range(4)]
    assert summarise(Load(1, PAGE_BYTES), steady).iops_noise == 0
    noisy = [
        Operations(np.zeros(9, np.int64), np.arange(1, 10) * scale) for scale in (500, 1000, 2000)
    ]
    once, often = (summarise(Load(1, PAGE_BYTES), noisy * count) for count in (2, 8))
    assert 0.2 < once.iops_noise < 1
    assert often.iops_noise == pytest.approx(once.iops_noise / 2, rel=0.5)


def test_loads_are_measured_in_turns_and_reported(target: Target) -> None:
    loads = [Load(1, PAGE_BYTES), Load(2, 1 << 20), Load(2, PAGE_BYTES, 0.5)]
    told: list[tuple[int, int | None]] = []
    turns = measure_loads(target, loads, 0.9, _rng(), lambda *done: told.append(done))
    assert [len(each) for each in turns] == [3, 3, 3]
    found = [summarise(load, each) for load, each in zip(loads, turns, strict=True)]
    assert told == [(turn, 9) for turn in range(1, 10)]
    for each in found:
        assert each.iops > 0
        assert 0 < each.latency_p50_s <= each.latency_p99_s


def test_what_the_host_takes_is_measured_and_never_negative(tmp_path: Path) -> None:
    cost = measure_host(tmp_path, WRITER, PAGE_BYTES, 0.3, _rng())
    terms = [getattr(cost.host, name) for name in HostSettings.__slots__]
    assert min(terms) >= 0
    assert cost.host.batch_s > 0
    assert cost.origin.latency_s > 0
    assert cost.origin.iops > 0
    assert list(tmp_path.iterdir()) == []
    validate(Settings(origin=OriginSettings("file", model=cost.origin), host=cost.host))


def test_rounds_of_the_host_are_summed_up_by_their_medians() -> None:
    rounds = [
        HostCost(replace(HOST, batch_s=batch_s), replace(ORIGIN, iops=iops), error)
        for batch_s, iops, error in ((3e-6, 1e3, 0.3), (1e-6, 3e3, 0.1), (8e-6, 2e3, 0.2))
    ]
    found = median_of(rounds)
    assert found.host == replace(HOST, batch_s=3e-6)
    assert found.origin == replace(ORIGIN, iops=2e3)
    assert found.error == 0.2
    assert [host.batch_s for host in found.rounds] == [3e-6, 1e-6, 8e-6]
    assert median_of(rounds[:1]) == rounds[0]


def test_the_settings_say_between_what_a_term_was_found(tmp_path: Path) -> None:
    costs = [HostCost(replace(HOST, batch_s=each), ORIGIN, 0.1) for each in (1e-6, 2.5e-6, 4e-6)]
    found = replace(calibration(GUEST), host=median_of(costs))
    path = tmp_path / "device.toml"
    path.write_text(to_toml(found))
    assert re.search(r'^batch = "2\.5 us"  # .*; 1 to 4 us in 3 rounds$', path.read_text(), re.M)
    assert "medians of 3 rounds" in path.read_text()
    host = load_settings(path).host
    assert host is not None
    assert host.batch_s == pytest.approx(2.5e-6)
    assert [each["batch_s"] for each in to_mapping(found)["host_rounds"]] == [1e-6, 2.5e-6, 4e-6]


@compiled
def test_where_nothing_can_be_written_the_host_is_left_out_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating.os, "access", lambda path, mode: False)
    path = tmp_path / "pages"
    path.write_bytes(bytes(SIZE_BYTES_MIN))
    told: list[str] = []
    found = calibrate(path, seconds=1, notify=told.append)
    assert found.host is None
    assert any("cannot be written: the host is not measured" in each for each in told)
    assert list(tmp_path.iterdir()) == [path]


@given(
    st.lists(st.floats(0, 1e-3), min_size=3, max_size=3),
    st.integers(0, 2**32 - 1),
)
def test_sums_of_terms_are_taken_apart_again(terms: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 50, (12, 3)).astype(np.float64) + np.eye(12, 3) * 100
    taken = counts @ np.array(terms)
    assert explain(counts, taken, np.ones(12)) == pytest.approx(terms, rel=1e-6, abs=1e-12)


def test_no_term_is_below_zero_and_the_rest_is_still_explained_best() -> None:
    counts = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    assert explain(counts, np.array([3.0, 2.0, 1.0]), np.ones(3)) == pytest.approx([2.0, 0.0])
    assert explain(counts, np.zeros(3), np.ones(3)) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "size_bytes", "message"),
    [
        ("missing", 1 << 30, "there is no such file or directory; name one on the device"),
        ("", 1 << 20, "1 MiB would be measured: it must be 64 MiB at least"),
        ("", 1 << 60, "are free, and --size is 1024 PiB; lower it or name another directory"),
        ("small", 1 << 30, "1 KiB would be measured: it must be 64 MiB at least"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, name: str, size_bytes: int, message: str
) -> None:
    (tmp_path / "small").write_bytes(bytes(1024))
    with (
        pytest.raises(SettingsError) as refusal,
        open_target(tmp_path / name, size_bytes, PAGE_BYTES, write=False, rng=_rng()),
    ):
        raise AssertionError
    assert str(refusal.value).startswith(str(tmp_path / name))
    assert message in str(refusal.value)


def test_a_device_file_is_refused() -> None:
    path = Path("/dev/null")
    with (
        pytest.raises(SettingsError, match="/dev/null: is neither a directory nor a regular file"),
        open_target(path, 1 << 30, PAGE_BYTES, write=False, rng=_rng()),
    ):
        raise AssertionError


def test_memory_in_the_place_of_a_device_is_noted(target: Target) -> None:
    direct, cached = replace(target.file, direct=True), replace(target.file, direct=False)
    assert list(_doubts(direct, "ext4", "/dev/vda")) == []
    assert "no O_DIRECT: this is the page cache" in "".join(_doubts(cached, "ext4", "/dev/vda"))
    assert "this is memory, not a device" in "".join(_doubts(direct, "tmpfs", "tmpfs"))
    assert "this is memory, not a device" in "".join(_doubts(direct, "ext4", "/dev/zram0"))


def test_the_mounted_file_system_is_read_from_mountinfo(tmp_path: Path) -> None:
    info = tmp_path / "mountinfo"
    info.write_text(
        "21 1 254:0 / / rw - ext4 /dev/vda rw\n"
        "36 21 0:31 / /dev/shm rw shared:3 - tmpfs tmpfs rw,size=1k\n"
    )
    assert _mounted(os.makedev(254, 0), info) == ("ext4", "/dev/vda")
    assert _mounted(os.makedev(0, 31), info) == ("tmpfs", "tmpfs")
    assert _mounted(os.makedev(9, 9), info) == ("an unknown file system", "an unknown device")


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [GUEST, WRITER, replace(THROTTLED, refill_s=0.01234)])
def test_the_settings_that_are_written_hold_the_model(model: DeviceModel, tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text(to_toml(calibration(model)))
    settings = load_settings(path)
    assert settings.page_bytes == 8192
    assert settings.tiers[0].model == model
    assert settings.tiers[0].capacity_bytes == 1 << 30
    assert settings.host is not None
    found = [getattr(settings.host, name) for name in HostSettings.__slots__]
    assert found == pytest.approx([getattr(HOST, name) for name in HostSettings.__slots__])
    assert settings.origin is not None
    assert settings.origin.backend == "file"
    assert settings.origin.model == ORIGIN


def test_what_was_not_measured_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text(to_toml(replace(calibration(GUEST), host=None)))
    settings = load_settings(path)
    assert settings.host is None
    assert settings.origin is not None
    assert settings.origin.model is None
    assert "was not measured" in path.read_text()
    assert to_mapping(replace(calibration(GUEST), host=None))["host"] is None


def test_the_settings_say_what_was_measured_and_how_well_it_fits() -> None:
    text = to_toml(calibration(GUEST))
    assert "# 2026-11-21" not in text
    assert "2026-11-21 06:00 UTC" in text
    assert "# ext4 on /dev/vda, 1 GiB of a file, through the page cache, uring," in text
    assert "# NOTE: this is a test." in text
    assert "# read 8 KiB, depth 4" in text
    assert all(f"# {line}".rstrip() in text for line in to_text(calibration(GUEST)).splitlines())
    half = replace(GUEST, iops=35e3, latency_s=48e-6, tail_latency_s=8e-5)
    assert re.search(r" -(49|50|51)% ", to_text(calibration(half)))


def test_the_mapping_has_a_row_per_load_with_its_errors() -> None:
    found = to_mapping(calibration(GUEST))
    assert [row["load"] for row in found["loads"]] == ["read 8 KiB, depth 4"]
    assert abs(found["loads"][0]["iops_error"]) < 0.05
    assert found["model"]["batch"] == 128
    assert "burst" not in found["model"]
    assert describe_load(Load(2, 512, 0.3)) == "30% written 512 B, depth 2"


def calibration(model: DeviceModel) -> Calibration:
    """One in which a model is held against a device that is ``GUEST``."""
    load = Load(4, 8192)
    return Calibration(
        model=model,
        fits=tuple(compare(model, [summarise(load, [predict(GUEST, load, 3)])], rounds=20)),
        host=HostCost(HOST, ORIGIN, 0.1),
        device="ext4 on /dev/vda",
        direct=False,
        engine="uring",
        size_bytes=1 << 30,
        page_bytes=8192,
        seconds=20,
        finished="2026-11-21 06:00 UTC",
        environment={"kvtier": "0.1.0", "cpu": "one", "cores": 1, "kernel": "Linux"},
        notes=("this is a test",),
    )


def _rng() -> np.random.Generator:
    return np.random.default_rng(1)
