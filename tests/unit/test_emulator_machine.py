"""The hardware of several GPUs: which stations their routes share."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from kvtier.backend import ObjectBatch
from kvtier.clock import VirtualClock
from kvtier.directory import ObjectDirectory
from kvtier.emulator import VirtualLoop, open_emulator, open_emulators, open_repetition
from kvtier.emulator.machine import Machine
from kvtier.emulator.station import Work
from kvtier.emulator.timeline import Timeline
from kvtier.errors import SettingsError
from kvtier.index import log_geometry
from kvtier.settings import (
    MODEL_PRESETS,
    DeviceModel,
    HostSettings,
    LinkSettings,
    OriginSettings,
    Settings,
    TierSettings,
    TopologySettings,
)

MIB = 1 << 20
SLOTS = MIB // 4096
EMPTY = np.empty((0, 0), np.uint8)
LINK = DeviceModel(1e-6, 1e15, 1e9)
SERVER = Settings(
    tiers=(TierSettings("hbm", MIB), TierSettings("dram", MIB), TierSettings("nvme", MIB)),
    origin=OriginSettings("memory"),
    topology=TopologySettings(
        links=(
            LinkSettings("up", (("gpu0", "gpu1", "gpu2", "shelf0", "shelf1"), "switch"), LINK),
            LinkSettings("root", ("switch", "host"), LINK),
        ),
        places={"nvme": ("shelf0", "shelf0", "shelf1"), "dram": "host", "origin": "host"},
        gpus=("gpu0", "gpu1", "gpu2"),
    ),
)


def test_routes_of_gpus_meet_in_the_devices_and_links_that_they_share() -> None:
    gpus = Machine(SERVER).hardware()
    hbm, dram, nvme, origin = zip(*(gpu.routes for gpu in gpus), strict=True)
    assert len({id(route.reads[0]) for route in hbm}) == 3
    assert len({id(route.reads[0]) for route in dram}) == 1
    assert nvme[0].reads[0] is nvme[1].reads[0] is not nvme[2].reads[0]
    assert dram[0].reads[1] is dram[2].reads[1] is origin[1].reads[1]  # from the host to the switch
    assert dram[0].reads[2] is not dram[1].reads[2]  # from the switch to each GPU


def test_caches_have_parts_of_a_device_that_do_not_overlap() -> None:
    gpus = Machine(SERVER).hardware()
    firsts = [[route.first_slot for route in gpu.routes] for gpu in gpus]
    locations = log_geometry(SLOTS, 4096, SERVER.tiers[2].segment_bytes).locations
    assert locations > SLOTS
    assert firsts == [[0, 0, 0, 0], [0, SLOTS, locations, 0], [0, 2 * SLOTS, 0, 0]]


def test_every_station_has_a_name() -> None:
    gpus = Machine(SERVER).hardware()
    passed = {
        id(station)
        for gpu in gpus
        for route in gpu.routes
        for station in (*route.reads, *route.writes)
    }
    for gpu in gpus:
        assert {id(station) for station in gpu.stations.values()} == passed


def test_the_software_of_each_gpu_runs_on_a_core_of_its_own() -> None:
    one, other, _ = Machine(replace(SERVER, host=HostSettings(copy_s=1e-3))).hardware()
    assert one.host is not None
    assert other.host is not None
    work = Work(np.zeros(1, np.int64), None, 4096, is_write=False)
    for route in (*one.routes, one.staging):
        assert route.reads[0].serve(0, work) <= 2_000_000  # dram, then out of staging
    assert one.host.busy_ns == 2_000_000
    assert other.host.busy_ns == 0


@pytest.mark.parametrize(
    ("wait_s", "arrivals_us"),
    [
        (0.0, [300, 400]),  # the second's issue goes before the first's answer, as it came first
        (1e-3, [1300, 1400]),  # both wait at the same time
    ],
)
def test_half_of_what_operations_take_comes_after_the_device_and_none_while_they_wait(
    wait_s: float, arrivals_us: list[int]
) -> None:
    settings = Settings(
        origin=OriginSettings("memory", model=DeviceModel(100e-6, 1e15, 1e18)),
        host=HostSettings(device_batch_s=200e-6, wait_s=wait_s),
    )
    (gpu,) = Machine(settings).hardware()
    timeline = Timeline(VirtualClock())
    found: list[int] = []
    work = Work(np.zeros(1, np.uint64), None, 4096, is_write=False)
    for _ in arrivals_us:
        gpu.routes[0].travel(timeline, work, lambda: found.append(timeline.now_ns // 1000))
    while timeline.step():
        pass
    assert found == arrivals_us
    assert gpu.host is not None
    assert gpu.host.busy_ns == 400_000


def test_two_devices_of_one_level_draw_tails_of_their_own() -> None:
    tail = DeviceModel(60e-6, 1e6, 1e10, tail_latency_s=1e-3)
    settings = Settings(
        tiers=(TierSettings("nvme", MIB, model=tail),),
        origin=OriginSettings("memory"),
        topology=TopologySettings(places={"nvme": ("a", "b")}, gpus=("a", "b")),
    )
    work = Work(np.zeros(1, np.uint64), None, 4096, is_write=False)
    one, other = (gpu.routes[0].reads[0].serve(0, work) for gpu in Machine(settings).hardware())
    assert one != other


def test_one_emulator_of_several_gpus_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"topology\.gpus: several GPUs"):
        open_emulator(SERVER, ObjectDirectory(8), VirtualClock(), {})


def test_emulators_share_a_timeline_and_the_objects_of_the_origin() -> None:
    one, two, three = open_emulators(SERVER, VirtualClock(), {b"there": 3})
    assert [emulator.gpu for emulator in (one, two, three)] == ["gpu0", "gpu1", "gpu2"]
    assert one.driver.timeline is two.driver.timeline is three.driver.timeline
    assert one.directory is not two.directory

    async def write_by_one() -> list[list[int]]:
        assert one.origin is not None
        assert two.origin is not None
        keys = [b"there", b"new", b"else"]
        before = await two.origin.stat(keys)
        put = asyncio.ensure_future(
            one.origin.put(ObjectBatch((b"new",), np.array([5], np.uint32), EMPTY))
        )
        await asyncio.sleep(0)
        underway = await two.origin.stat(keys)
        await put
        after = await two.origin.stat(keys)
        return [stats.pages.tolist() for stats in (before, underway, after)]

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(one.driver.timeline)) as runner:
        assert runner.run(write_by_one()) == [[3, -1, -1], [3, -1, -1], [3, 5, -1]]


def test_written_objects_go_to_every_drive_of_an_origin() -> None:
    pages = np.ones(50_000, np.int64)

    def written_ns(drives: int) -> tuple[int, int]:
        """When all of them have reached the origin: of a cache, and of a repetition."""
        model = replace(MODEL_PRESETS["storage-next"].model, devices=drives)
        settings = Settings(origin=OriginSettings("memory", model=model))
        driver, _ = open_emulator(settings, ObjectDirectory(1), VirtualClock(), {})
        with asyncio.Runner(loop_factory=lambda: VirtualLoop(driver.timeline)) as runner:
            for part in np.split(pages, 10):
                runner.run(driver.put(part))
        repetition = open_repetition(
            settings, VirtualClock(), origin_extent_pages_max=1, origin_batch_extents_max=1
        )
        for part in np.split(pages, 10):
            repetition.put(part, lambda: None)
        while repetition.timeline.step():
            pass
        return driver.timeline.now_ns, repetition.timeline.now_ns

    for alone_ns, shared_ns in zip(written_ns(1), written_ns(8), strict=True):
        assert alone_ns > 4 * shared_ns
