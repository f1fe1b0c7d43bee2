import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.errors import SettingsError
from kvtier.ssd import STORAGE_NEXT_SLC as SLC
from kvtier.ssd import SsdModel

TLC = SsdModel(
    channels=16,
    dies_per_channel=4,
    planes_per_die=4,
    nand_page_bytes=16384,
    sense_us=40,
    program_us=500,
    command_ns=200,
    channel_bytes_per_s=2.4e9,
    link_bytes_per_s=14e9,
)
sizes = st.sampled_from([512, 1024, 4096, 16384, 65536])
models = st.builds(
    SsdModel,
    channels=st.integers(1, 64),
    dies_per_channel=st.integers(1, 16),
    planes_per_die=st.integers(1, 8),
    nand_page_bytes=st.sampled_from([4096, 16384]),
    sense_us=st.floats(1, 100),
    program_us=st.floats(10, 2000),
    command_ns=st.floats(0, 1000),
    channel_bytes_per_s=st.floats(1e8, 1e10),
    link_bytes_per_s=st.floats(1e9, 1e11),
    reads_per_write=st.floats(0, 100) | st.just(math.inf),
    write_amplification=st.floats(1, 10),
)


@pytest.mark.parametrize(
    ("io_bytes", "printed"), [(512, "57.4"), (1024, "35.3"), (2048, "20.4"), (4096, "11.1")]
)
def test_the_peak_of_the_base_case_is_the_papers(io_bytes: int, printed: str) -> None:
    assert f"{SLC.peak_iops(io_bytes) / 1e6:.1f}" == printed


def test_nine_reads_and_a_write_are_fourteen_operations_on_flash() -> None:
    assert SLC.read_share == pytest.approx(11 / 14)
    assert SLC.write_share == pytest.approx(3 / 14)
    assert SLC.host_share == pytest.approx(10 / 14)


def test_the_rates_of_a_die_and_a_channel_are_those_worked_out_by_hand() -> None:
    die = 11 / 14 * 6 / 5e-6 + 3 / 14 * 6 * 8 / 50e-6
    bytes_s = 512 / 3.6e9
    channel = 11 / 14 / (150e-9 + bytes_s) + 3 / 14 / (150e-9 / 8 + bytes_s)
    assert SLC.die_rate(512) == pytest.approx(die)
    assert SLC.channel_rate(512) == pytest.approx(channel)


@pytest.mark.parametrize(("model", "io_bytes", "share"), [(SLC, 512, 0.94), (SLC, 4096, 1.0)])
def test_the_capacity_falls_short_of_the_peak_where_reads_and_writes_differ(
    model: SsdModel, io_bytes: int, share: float
) -> None:
    ratio = model.capacity_iops(io_bytes) / model.peak_iops(io_bytes)
    assert ratio == pytest.approx(share, abs=0.005)


@given(models, sizes)
def test_the_capacity_never_exceeds_the_peak(model: SsdModel, io_bytes: int) -> None:
    assert 0 < model.capacity_iops(io_bytes) <= model.peak_iops(io_bytes) * (1 + 1e-12)


@given(models, sizes)
def test_a_drive_that_only_reads_has_one_limit(model: SsdModel, io_bytes: int) -> None:
    reading = replace(model, reads_per_write=math.inf)
    assert (reading.read_share, reading.write_share, reading.host_share) == (1, 0, 1)
    assert reading.capacity_iops(io_bytes) == pytest.approx(reading.peak_iops(io_bytes))


@given(models, sizes)
def test_a_larger_io_is_no_more_frequent(model: SsdModel, io_bytes: int) -> None:
    assert model.peak_iops(2 * io_bytes) <= model.peak_iops(io_bytes)
    assert model.capacity_iops(2 * io_bytes) <= model.capacity_iops(io_bytes)


def test_a_drive_that_only_writes_is_bound_by_its_programs() -> None:
    writing = replace(TLC, reads_per_write=0, write_amplification=1)
    assert (writing.read_share, writing.write_share, writing.host_share) == (0, 1, 1)
    assert writing.capacity_iops(4096) == pytest.approx(256 * 4 / 500e-6)


def test_the_link_bounds_peak_and_capacity() -> None:
    slow = replace(SLC, link_bytes_per_s=4.096e9)
    assert slow.peak_iops(4096) == pytest.approx(1e6)
    assert slow.capacity_iops(4096) == pytest.approx(1e6)


def test_an_io_beyond_a_nand_page_is_sensed_and_commanded_page_by_page() -> None:
    assert SLC.plane_read_s(16384) == pytest.approx(20e-6)
    assert SLC.channel_read_s(16384) == pytest.approx(4 * SLC.channel_read_s(4096))


def test_the_p99_wait_is_the_papers_approximation() -> None:
    assert SLC.wait_p99_s(512, 0) == pytest.approx(5e-6)
    mean_wait_s = 20 / 57.428e6 * 0.8 / 0.4
    assert SLC.wait_p99_s(512, 0.8) == pytest.approx(mean_wait_s * math.log(100) + 5e-6, rel=1e-4)


@given(models, sizes, st.floats(0, 0.99), st.floats(0, 0.99))
def test_the_p99_wait_grows_with_the_load(
    model: SsdModel, io_bytes: int, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert model.wait_p99_s(io_bytes, low) <= model.wait_p99_s(io_bytes, high)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("channels", 0),
        ("channels", 2.5),
        ("dies_per_channel", -1),
        ("planes_per_die", 0),
        ("nand_page_bytes", 0),
        ("nand_page_bytes", 1000),
        ("sense_us", 0),
        ("sense_us", math.nan),
        ("program_us", -50),
        ("command_ns", -1),
        ("channel_bytes_per_s", 0),
        ("link_bytes_per_s", math.inf),
        ("reads_per_write", -1),
        ("reads_per_write", math.nan),
        ("write_amplification", 0.5),
        ("write_amplification", math.inf),
    ],
)
def test_an_impossible_drive_is_refused_in_one_line(field: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=rf"^{field} is {value}: it must be [^\n]+$"):
        replace(SLC, **{field: value})


@pytest.mark.parametrize("io_bytes", [0, -512, 100, 4097, 2 << 30])
def test_an_impossible_io_is_refused(io_bytes: int) -> None:
    for ask in (SLC.peak_iops, SLC.capacity_iops, lambda size: SLC.wait_p99_s(size, 0.5)):
        with pytest.raises(SettingsError, match=rf"^io_bytes is {io_bytes}: it must be [^\n]+$"):
            ask(io_bytes)


@pytest.mark.parametrize("utilisation", [-0.1, 1.0, math.nan])
def test_no_wait_is_told_for_a_load_that_a_drive_cannot_bear(utilisation: float) -> None:
    with pytest.raises(SettingsError, match=f"utilisation is {utilisation}"):
        SLC.wait_p99_s(4096, utilisation)
