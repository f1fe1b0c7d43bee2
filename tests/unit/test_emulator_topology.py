from __future__ import annotations

import numpy as np
import pytest

from kvtier.emulator.device import ModelledDevice
from kvtier.emulator.station import Work
from kvtier.emulator.topology import Topology
from kvtier.errors import SettingsError
from kvtier.settings import DeviceModel, LinkSettings, TopologySettings

PAGE_BYTES = 4096


def link(name: str, one: str, other: str, bytes_per_s: float = 4096e6) -> LinkSettings:
    """A link over which a page takes a microsecond."""
    return LinkSettings(name, (one, other), DeviceModel(0.0, 1e15, bytes_per_s))


# gpu - switch - drives, and host beside both; the NIC hangs at the host.
SERVER = TopologySettings(
    links=(
        link("up", "gpu", "switch"),
        link("slots", "switch", "drives"),
        link("root", "switch", "host"),
        link("port", "host", "nic"),
    ),
    places={"hbm": "gpu", "dram": "host", "nvme": "drives", "origin": "nic"},
)


DEVICE = ModelledDevice(DeviceModel(0.0, 1e15, 1e18))


def changed(**changes: object) -> TopologySettings:
    fields = {name: getattr(SERVER, name) for name in TopologySettings.__slots__}
    return TopologySettings(**{**fields, **changes})  # type: ignore[arg-type]


def names(topology: Topology, level: str, *, is_device: bool = True) -> list[str]:
    return [hop.name for hop in topology.way(level, is_device=is_device)]


def pages(count: int) -> Work:
    return Work(np.zeros(count, np.uint64), None, PAGE_BYTES, is_write=False)


def test_a_page_takes_the_way_of_fewest_links() -> None:
    topology = Topology(SERVER)
    assert names(topology, "nvme") == ["slots (drives to switch)", "up (switch to gpu)"]
    assert names(topology, "dram", is_device=False) == [
        "root (host to switch)",
        "up (switch to gpu)",
    ]
    assert names(topology, "origin") == [
        "port (nic to host)",
        "root (host to switch)",
        "up (switch to gpu)",
    ]
    assert names(topology, "hbm", is_device=False) == []


def test_through_the_host_a_page_of_a_drive_passes_the_switch_twice() -> None:
    topology = Topology(changed(route="host"))
    assert names(topology, "nvme") == [
        "slots (drives to switch)",
        "root (switch to host)",
        "root (host to switch)",
        "up (switch to gpu)",
    ]


def test_a_level_without_a_place_is_beside_the_gpu() -> None:
    assert names(Topology(changed(places={})), "nvme") == []


def test_a_route_that_shares_a_link_waits_for_the_other() -> None:
    topology = Topology(SERVER)
    from_drives = topology.route("nvme", DEVICE, is_device=True).reads[-1]
    from_host = topology.route("dram", DEVICE, is_device=False).reads[-1]
    assert from_drives is from_host
    assert from_drives.serve(0, pages(3)) == 3_000
    assert from_host.serve(0, pages(2)) == 5_000


def test_the_two_directions_of_a_link_do_not_wait_for_each_other() -> None:
    route = Topology(SERVER).route("nvme", DEVICE, is_device=True)
    assert route.reads[0] is route.writes[-1] is DEVICE
    assert len(route.reads) == len(route.writes) == 3
    assert route.reads[-1].serve(0, pages(3)) == route.writes[0].serve(0, pages(3)) == 3_000


def test_what_issues_operations_is_passed_first_by_devices_alone_and_shared() -> None:
    topology = Topology(changed(issue=DeviceModel(0.0, 1e6, 1e18, devices=2)))
    drives = topology.route("nvme", DEVICE, is_device=True)
    origin = topology.route("origin", DEVICE, is_device=True)
    core = drives.reads[0]
    assert core is drives.writes[0] is origin.reads[0]
    assert topology.route("dram", DEVICE, is_device=False).reads[0] is DEVICE
    assert core.serve(0, pages(4)) == 2_000  # two cores of a million operations per second


def test_stations_are_listed_by_name_once_a_route_passes_them() -> None:
    topology = Topology(changed(issue=DeviceModel(0.0, 1e6, 1e18)))
    topology.route("nvme", DEVICE, is_device=True)
    assert list(topology.stations) == [
        "issue",
        "slots (drives to switch)",
        "up (switch to gpu)",
        "up (gpu to switch)",
        "slots (switch to drives)",
    ]


def test_a_topology_without_a_way_is_refused() -> None:
    apart = changed(links=(link("up", "gpu", "switch"), link("slots", "drives", "shelf")))
    message = "^topology.links: there is no way from drives, where nvme is, to gpu: add the"
    with pytest.raises(SettingsError, match=message):
        Topology(apart).way("nvme", is_device=True)


def test_a_place_that_no_link_reaches_is_refused() -> None:
    with pytest.raises(SettingsError, match="no link ends at shelf: there are gpu, switch"):
        Topology(changed(places={"nvme": "shelf"})).way("nvme", is_device=True)


def test_two_links_of_one_name_are_refused() -> None:
    links = (link("up", "gpu", "a"), link("up", "a", "b"))
    with pytest.raises(SettingsError, match="two links named up"):
        Topology(changed(links=links))
