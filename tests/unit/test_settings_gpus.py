"""Several GPUs in the settings: how they are written, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtier.errors import SettingsError
from kvtier.settings import Settings, device_names, gpus_of, load_settings
from kvtier.settings.gpus import pairs_of, place_of

SERVER = """
[tiers.hbm]
capacity = "1 GiB"

[tiers.nvme]
capacity = "1 GiB"

[origin]
backend = "memory"

[topology]
gpus = 4
places = { nvme = ["slots0", "slots0", "slots1", "slots1"], origin = "nic" }

[topology.links.up0]
between = [["gpu0", "gpu1", "slots0"], "switch0"]
model = { preset = "pcie-gen5-x16" }

[topology.links.up1]
between = ["switch1", ["gpu2", "gpu3", "slots1"]]
model = { preset = "pcie-gen5-x16" }

[topology.links.root]
between = [["switch0", "switch1", "nic"], "host"]
model = { preset = "pcie-gen5-x16" }
"""


def load(tmp_path: Path, *overrides: str, text: str = SERVER) -> Settings:
    file = tmp_path / "server.toml"
    file.write_text(text, encoding="utf-8")
    return load_settings(file, overrides)


def refusal(tmp_path: Path, *overrides: str, text: str = SERVER) -> str:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, *overrides, text=text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_number_of_gpus_names_them(tmp_path: Path) -> None:
    assert gpus_of(load(tmp_path).topology) == ("gpu0", "gpu1", "gpu2", "gpu3")


def test_gpus_can_have_names_of_their_own(tmp_path: Path) -> None:
    settings = load(tmp_path, 'topology.gpus=["left","right"]', text='[origin]\nbackend="memory"\n')
    assert gpus_of(settings.topology) == ("left", "right")


def test_without_a_topology_and_without_gpus_there_is_one() -> None:
    assert gpus_of(None) == ("gpu",)
    assert gpus_of(load_settings(None, ["topology.gpu=h200"]).topology) == ("h200",)


def test_a_link_with_several_parts_at_one_end_is_one_for_each(tmp_path: Path) -> None:
    topology = load(tmp_path).topology
    assert topology is not None
    assert [pairs_of(link) for link in topology.links[:2]] == [
        [("gpu0", "switch0"), ("gpu1", "switch0"), ("slots0", "switch0")],
        [("switch1", "gpu2"), ("switch1", "gpu3"), ("switch1", "slots1")],
    ]


def test_a_place_is_one_for_all_gpus_or_one_for_each(tmp_path: Path) -> None:
    topology = load(tmp_path).topology
    assert topology is not None
    assert [place_of(topology, "nvme", gpu) for gpu in range(4)] == ["slots0"] * 2 + ["slots1"] * 2
    assert [place_of(topology, "origin", gpu) for gpu in range(4)] == ["nic"] * 4
    assert [place_of(topology, "hbm", gpu) for gpu in range(4)] == ["gpu0", "gpu1", "gpu2", "gpu3"]


def test_gpus_share_the_device_of_a_part_and_have_memory_of_their_own(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert device_names(settings, "hbm") == tuple(f"hbm (gpu{number})" for number in range(4))
    assert device_names(settings, "nvme") == ("nvme (slots0)",) * 2 + ("nvme (slots1)",) * 2
    assert device_names(settings, "dram") == ("dram",) * 4
    assert device_names(settings, "origin") == ("origin",) * 4


def test_the_devices_of_one_gpu_are_called_as_their_levels() -> None:
    settings = load_settings(None, ['topology.gpus=["only"]', 'topology.places.nvme=["only"]'])
    assert {device_names(settings, level) for level in ("hbm", "nvme")} == {("hbm",), ("nvme",)}


@pytest.mark.parametrize("gpus", ["0", "-1", "257", "true", '"gpu0"', "[]", "[1, 2]", "2.5"])
def test_what_is_no_number_and_no_names_is_refused(tmp_path: Path, gpus: str) -> None:
    message = refusal(tmp_path, f"topology.gpus={gpus}")
    assert "--set: topology.gpus is" in message
    assert "how many, from 1 to 256" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (['topology.gpus=["a","a"]'], "topology.gpus: there are two of one name"),
        (['topology.gpus=["a",""]'], "topology.gpus: a GPU has no name"),
        (["topology.gpu=a"], "topology.gpu and topology.gpus are both there"),
        (['topology.places.nvme=["a","b"]'], "topology.places.nvme has 2 parts for 4 GPUs"),
        (["topology.places.nvme=[]"], "topology.places.nvme is []: it must be a part, or a list"),
        (["topology.places.hbm=gpu0"], "topology.places.hbm: each of several GPUs has its own"),
        (
            ['topology.links.up0.between=[["a","b"],["c","d"]]'],
            "topology.links.up0.between: both ends are several parts",
        ),
        (
            ['topology.links.up0.between=[["a","a"],"b"]'],
            "topology.links.up0.between: an end names a part twice",
        ),
        (
            ['topology.links.up0.between=[["a","b"],"b"]'],
            "topology.links.up0.between: the link ends at b, where it begins",
        ),
        (['topology.links.up0.between=["a"]'], "it must be the two parts that it links"),
        (["topology.issue_by=gpu"], "topology.issue_by is of what issues operations"),
        (
            [
                f"topology.issue.{figure}"
                for figure in ("latency=0s", "iops=1e6", "bandwidth=1TB/s")
            ],
            "topology.issue_by is missing",
        ),
        (["replay.spread=randomly"], "it must be one of session, round_robin"),
    ],
)
def test_what_does_not_fit_several_gpus_is_refused(
    tmp_path: Path, changes: list[str], words: str
) -> None:
    assert words in refusal(tmp_path, *changes)


def test_the_preset_of_what_issues_says_where_it_is(tmp_path: Path) -> None:
    for preset in ("gpu-sm", "host-core"):
        load(tmp_path, f"topology.issue.preset={preset}")


def test_a_model_of_devices_alone_takes_the_preset_of_its_level(tmp_path: Path) -> None:
    settings = load(tmp_path, "tiers.nvme.model.devices=8", "origin.model.devices=2")
    assert settings.origin is not None
    models = [settings.tiers[1].model, settings.origin.model]
    assert [(model.preset, model.devices) for model in models if model] == [
        ("gen5-nvme", 8),
        ("100gbe-server", 2),
    ]


def test_a_model_with_a_rate_of_its_own_takes_no_preset(tmp_path: Path) -> None:
    assert "tiers.nvme.model.latency is missing" in refusal(tmp_path, "tiers.nvme.model.iops=1e6")
