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
    TopologySettings,
    load_settings,
)
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
        ("topology.places.nvme=3", "topology.places.nvme is 3: it must be a text"),
        ("topology.places=nic", "topology.places is 'nic': it must be a table"),
        ("topology.links.up.model.devices=0", "topology.links.up.model.devices is 0: it must be"),
        ("topology.links.up.between=['a']", "topology.links.up.between is ['a']: it must be the"),
        ("topology.links.up.between=['a', 'a']", "topology.links.up.between: the link ends at a"),
        ("topology.links.new.between=['a', 'b']", "topology.links.new.model is missing"),
        ("topology.issue.iops=0", "topology.issue.iops is 0"),
        ("topology.route=direct", "topology.route is 'direct': it must be one of p2p, host"),
    ],
)
def test_a_topology_that_cannot_be_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        load(tmp_path, [override])
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


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
        ("tiers.nvme.model.flash.chanels=5", "did you mean tiers.nvme.model.flash.channels?"),
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
