from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from kvtier import machine
from kvtier.clock import VirtualClock
from kvtier.emulator.opening import open_emulators
from kvtier.errors import SettingsError
from kvtier.identities import Identities
from kvtier.index import LogIndex, log_geometry
from kvtier.machine import LOCATION_BYTES, check_emulated, check_machine
from kvtier.settings import Settings, TierSettings, default_settings, load_settings
from kvtier.tiers import open_tier
from kvtier.tiers.log_format import layout_of
from kvtier.tiers.log_mirror import LogMirror


class Usage(NamedTuple):
    """As of ``shutil.disk_usage``."""

    total: int
    used: int
    free: int


def test_the_defaults_fit_this_machine() -> None:
    check_machine(default_settings())


def test_tiers_larger_than_memory_are_refused_with_both_numbers() -> None:
    settings = load_settings(None, ["tiers.dram.capacity=100TiB", "device=cpu"])
    with pytest.raises(SettingsError) as refusal:
        check_machine(settings)
    assert re.search(r"need 100 TiB of memory \(hbm 64 MiB \+ dram 100 TiB", str(refusal.value))
    assert re.search(r"and [\d.]+ [KMGT]iB are available; lower", str(refusal.value))


def test_an_hbm_tier_on_a_gpu_takes_no_host_memory() -> None:
    check_machine(load_settings(None, ["tiers.hbm.capacity=100TiB", "device=cuda"]))


def test_an_nvme_tier_larger_than_its_disk_is_refused_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(
        None, ["tiers.nvme.capacity=200TiB", f"tiers.nvme.path={tmp_path}/pages"]
    )
    monkeypatch.setattr(machine, "memory_available_bytes", lambda: None)
    with pytest.raises(SettingsError) as refusal:
        check_machine(settings)
    assert f"are free in {tmp_path}; lower it" in str(refusal.value)
    assert str(refusal.value).startswith("tiers.nvme.capacity is 200 TiB: that takes a file of 21")


@pytest.mark.asyncio
@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
async def test_the_disk_must_have_room_for_the_whole_file_and_no_more(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = tuple(tmp_path / name for name in names)
    tier = TierSettings("nvme", 16 << 20, paths=paths, segment_bytes=1 << 20)
    await (await open_tier(tier, 4096, 1)).close()
    needed_bytes = max(path.stat().st_size for path in paths)
    assert needed_bytes > tier.capacity_bytes // len(paths)
    for path in paths:
        path.unlink()
    free = needed_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))
    check_machine(Settings(tiers=(tier,)))
    free -= 1
    with pytest.raises(SettingsError, match="that takes a file of"):
        check_machine(Settings(tiers=(tier,)))


def test_a_write_buffer_of_two_long_segments_counts_as_memory() -> None:
    overrides = ["tiers.nvme.capacity=1 TiB", "tiers.nvme.segment=1 GiB"]
    with pytest.raises(SettingsError, match=r"nvme write buffer 2 GiB \+ nvme index 17\.5 GiB"):
        check_machine(load_settings(None, [*overrides, "tiers.dram.capacity=100TiB"]))


def test_the_index_of_a_log_takes_as_much_memory_as_it_is_said_to() -> None:
    geometry = log_geometry(1 << 20, 4096, 4 << 20)
    index = LogIndex(geometry)
    mirror = LogMirror(layout_of(geometry, 4096), Identities(1), np.zeros(2, np.uint64))
    table = index._index._table._replace(digest_words=np.empty(0, np.uint64))  # the same memory
    parts = [*vars(index).values(), *vars(mirror).values(), *table]
    used_bytes = sum(part.nbytes for part in parts if isinstance(part, np.ndarray))
    assert 0.99 < used_bytes / (LOCATION_BYTES * geometry.locations) < 1.01


def test_an_nvme_tier_needs_its_directory(tmp_path: Path) -> None:
    settings = load_settings(None, [f"tiers.nvme.path={tmp_path}/none/pages"])
    with pytest.raises(SettingsError, match="there is no directory"):
        check_machine(settings)


def test_an_nvme_tier_needs_a_file_not_a_directory(tmp_path: Path) -> None:
    settings = load_settings(None, [f"tiers.nvme.path={tmp_path}"])
    with pytest.raises(SettingsError, match="is a directory; name a file in it"):
        check_machine(settings)


def test_each_file_of_a_striped_tier_needs_its_directory(tmp_path: Path) -> None:
    settings = load_settings(None, [f"tiers.nvme.paths=['{tmp_path}/a', '{tmp_path}/none/b']"])
    with pytest.raises(SettingsError, match=r"tiers.nvme.paths: there is no directory .*/none"):
        check_machine(settings)


def test_indexes_of_modelled_drives_must_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_available_bytes", lambda: 2 << 30)
    one = load_settings(None, ["tiers.nvme.capacity=256 GiB"])
    check_emulated(one)
    several = load_settings(None, ["tiers.nvme.capacity=256 GiB", "topology.gpus=2"])
    with pytest.raises(SettingsError, match=r"the indexes of 2 GPUs need 2\.66 GiB"):
        open_emulators(several, VirtualClock(), {})
