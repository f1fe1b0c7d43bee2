from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kvtier.errors import SettingsError
from kvtier.settings import (
    MODEL_PRESETS,
    LinkSettings,
    Settings,
    TierSettings,
    TopologySettings,
    load_settings,
    validate,
)
from kvtier.settings.presets import flash_model
from kvtier.ssd import STORAGE_NEXT_SLC

TOPOLOGY = """
[origin]
backend = "memory"

[topology]
gpu = "gpu0"
host = "socket"
route = "host"
places = { origin = "nic" }

[topology.issue]
preset = "host-core"
devices = 8

[topology.links.up]
between = ["gpu0", "socket"]

[topology.links.up.model]
preset = "pcie-gen5-x16"

[topology.links.port]
between = ["socket", "nic"]

[topology.links.port.model]
preset = "100gbe"
"""


def load(tmp_path: Path, overrides: Sequence[str] = ()) -> Settings:
    path = tmp_path / "case.toml"
    path.write_text(TOPOLOGY)
    return load_settings(path, overrides)


def test_a_topology_is_read(tmp_path: Path) -> None:
    assert load(tmp_path).topology == TopologySettings(
        links=(
            LinkSettings("up", ("gpu0", "socket"), MODEL_PRESETS["pcie-gen5-x16"].model),
            LinkSettings("port", ("socket", "nic"), MODEL_PRESETS["100gbe"].model),
        ),
        places={"origin": "nic"},
        gpu="gpu0",
        host="socket",
        route="host",
        issue=replace(MODEL_PRESETS["host-core"].model, devices=8),
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("topology.places.orgin=nic", "topology.places.orgin is no level; did you mean origin?"),
        ("topology.places.nvme=3", "topology.places.nvme is 3: it must be a part, or a list"),
        ("topology.places=nic", "topology.places is 'nic': it must be a table"),
        ("topology.links.up.model.devices=0", "topology.links.up.model.devices is 0: it must be"),
        ("topology.links.up.between=['a']", "topology.links.up.between is ['a']: it must be the"),
        ("topology.links.up.between=['a', 'a']", "topology.links.up.between: the link ends at a"),
        ("topology.links.new.between=['a', 'b']", "topology.links.new.model is missing"),
        ("topology.issue.iops=0", "topology.issue.iops is 0"),
        ("topology.places.nvme=nic", "topology.places.nvme: there is no level nvme here; leave it"),
        (
            "topology.places.origin=nik",
            "topology.places.origin is nik, where no link ends; did yo",
        ),
        ("topology.places.origin=", "topology.places.origin: a part is called ''; give it a name"),
        ("topology.links.up.between=['a', ' ']", "topology.links.up.between: a part is called ' '"),
        (
            "topology.links.up.between=['nic', 'socket']",
            "topology.links.port.between: up links so",
        ),
        ("topology.gpu=gpu1", "topology.gpu is gpu1, where no link ends, so no page gets there; "),
        ("topology.host=cpu", "topology.host is cpu, where no link ends, and topology.route leads"),
        ("topology.host=", "topology.host: a part is called ''"),
        (
            "topology.links.up.model.preset=storage-next",
            "topology.links.up.model is a flash drive, which stores pages: give latency, iops",
        ),
        ("topology.issue.preset=storage-next", "topology.issue is a flash drive"),
        ("topology.route=direct", "topology.route is 'direct': it must be one of p2p, host"),
    ],
)
def test_a_topology_that_cannot_be_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        load(tmp_path, [override])
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_host_that_no_way_passes_needs_no_link(tmp_path: Path) -> None:
    settings = load(tmp_path, ["topology.route=p2p", "topology.host=elsewhere"])
    assert settings.topology is not None


def test_a_tier_that_is_left_out_takes_its_place_with_it(tmp_path: Path) -> None:
    nvme = ["tiers.nvme.capacity=1GiB", "topology.places.nvme=nic"]
    kept = load(tmp_path, nvme).topology
    left_out = load(tmp_path, [*nvme, "tiers.nvme.capacity=0"]).topology
    assert kept is not None
    assert left_out is not None
    assert dict(kept.places) == {"origin": "nic", "nvme": "nic"}
    assert dict(left_out.places) == {"origin": "nic"}


FLASH = """
[origin]
backend = "memory"

[tiers.nvme]
capacity = "64 MiB"

[tiers.nvme.model]
devices = 2

[tiers.nvme.model.flash]
channels = 20
dies_per_channel = 4
planes_per_die = 6
nand_page = "4 KiB"
sense = "5 us"
program = "50 us"
command = "150 ns"
channel_bandwidth = "3.6 GB/s"
link_bandwidth = "64 GB/s"
"""


def test_a_drive_is_read_as_it_is_built(tmp_path: Path) -> None:
    path = tmp_path / "case.toml"
    path.write_text(FLASH)
    model = load_settings(path).tiers[0].model
    assert model is not None
    assert model.flash == STORAGE_NEXT_SLC
    assert model == replace(MODEL_PRESETS["storage-next"].model, devices=2, preset="custom")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tiers.nvme.model.flash.channels=0", "tiers.nvme.model.flash.channels is 0: it must be 1"),
        ("tiers.nvme.model.flash.sense=5", "tiers.nvme.model.flash.sense: 5 is no time"),
        (
            "tiers.nvme.model.flash.nand_page=100",
            "tiers.nvme.model.flash.nand_page: nand_page_bytes is 100: it must be 512",
        ),
        ("tiers.nvme.model.flash.chanels=5", "did you mean tiers.nvme.model.flash.channels?"),
        ("tiers.nvme.model.flash=fast", "tiers.nvme.model.flash is 'fast': it must be a table"),
        ("tiers.nvme.model.iops=1e6", "--set: tiers.nvme.model.iops is of no effect on a flash"),
        ("tiers.nvme.model.latency=1ms", "tiers.nvme.model.latency is of no effect on a flash"),
        ("tiers.nvme.model.bandwidth=1GB/s", "tiers.nvme.model.bandwidth is of no effect"),
        ("tiers.nvme.model.tail_latency=9us", "tiers.nvme.model.tail_latency is of no effect"),
        ("tiers.nvme.model.batch=2", "tiers.nvme.model.batch is of no effect"),
        ("tiers.nvme.model.sustained_iops=1e5", "tiers.nvme.model.sustained_iops is of no effect"),
        ("tiers.nvme.model.write_iops=1e5", "tiers.nvme.model.write_iops is of no effect"),
        (
            "tiers.nvme.model.preset=gen5-nvme",
            "tiers.nvme.model.preset is gen5-nvme, which is no flash drive, beside",
        ),
        (
            "tiers.nvme.model.devices=34953",
            "tiers.nvme.model.devices is 34953: it must be 1 to ",
        ),
    ],
)
def test_a_drive_that_cannot_be_built_is_refused(
    tmp_path: Path, override: str, message: str
) -> None:
    path = tmp_path / "case.toml"
    path.write_text(FLASH)
    with pytest.raises(SettingsError) as refusal:
        load_settings(path, [override])
    assert message in str(refusal.value)


def test_a_preset_that_is_a_flash_drive_takes_no_figures(tmp_path: Path) -> None:
    path = tmp_path / "case.toml"
    path.write_text(FLASH.partition("[tiers.nvme.model]")[0])
    chosen = ["tiers.nvme.model.preset=storage-next", "tiers.nvme.model.devices=4"]
    assert load_settings(path, chosen).tiers[0].model is not None
    with pytest.raises(SettingsError, match=r"tiers\.nvme\.model\.iops is of no effect"):
        load_settings(path, [*chosen, "tiers.nvme.model.iops=1"])


def test_a_drive_is_a_preset_but_for_what_its_table_says(tmp_path: Path) -> None:
    path = tmp_path / "case.toml"
    path.write_text(FLASH.partition("[tiers.nvme.model]")[0])
    changes = ["tiers.nvme.model.preset=storage-next", "tiers.nvme.model.flash.channels=10"]
    model = load_settings(path, changes).tiers[0].model
    assert model == replace(
        flash_model(replace(STORAGE_NEXT_SLC, channels=10)), preset="storage-next"
    )


def test_figures_beside_flash_are_refused_in_settings_made_by_code() -> None:
    model = replace(MODEL_PRESETS["storage-next"].model, burst=4)
    settings = Settings(tiers=(TierSettings("nvme", 1 << 30, model=model),))
    with pytest.raises(SettingsError, match=r"^tiers\.nvme\.model\.burst is "):
        validate(settings)


def test_a_tier_larger_than_an_index_is_refused_by_its_key() -> None:
    with pytest.raises(SettingsError, match=r"tiers\.hbm\.capacity is .*: it must be 256 TiB"):
        load_settings(None, ["tiers.hbm.capacity=257TiB"])
