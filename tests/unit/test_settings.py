from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kvtier.errors import SettingsError
from kvtier.settings import (
    MODEL_PRESETS,
    ChainSettings,
    DeviceModel,
    FaultSettings,
    OriginSettings,
    ReadFaultSettings,
    ReplaySettings,
    Settings,
    TierSettings,
    WriteFaultSettings,
    default_model,
    default_settings,
    load_settings,
    model_source,
    parse_assignment,
    to_dict,
    validate,
)
from kvtier.settings.toml import build_settings

EVERYTHING = """
page_bytes = "8 KiB"
seed = 7
device = "cpu"

[tiers.nvme]
capacity = "4 GiB"
paths = ["left.pages", "right.pages"]
engine = "aiofiles"
queue_depth = 64
direct = false
stripe = "1 MiB"
faults = { seed = 3, delay = "1 ms", reads = { fail_share = 0.5 }, writes = { lost_share = 1 } }

[tiers.hbm]
capacity = "64 MiB"
ways = 8
admit = 0.5
write = "none"

[tiers.hbm.model]
latency = "1 us"
iops = 500_000_000
bandwidth = "2 TB/s"
devices = 2

[tiers.nvme.model]
preset = "gen6-nvme"
latency = "70 us"

[origin]
backend = "tcp"
write = "none"
merge_gap_pages = 2
extent_pages_max = 16

[origin.options]
url = "tcp://127.0.0.1:7070"

[origin.model]
latency = "50 us"
iops = 1e6
bandwidth = "12.5 GB/s"

[chain]
batch_pages_max = 1024
inflight_pages_max = 4096
device_batch_pages = 64
staging = "8 MiB"
objects_max = 1000

[replay]
concurrency = 128
pages_per_block = 0
model = "qwen3-8b"
verify_share = 1
series_interval = "250 ms"
"""

EVERY_SETTING = Settings(
    page_bytes=8192,
    seed=7,
    device="cpu",
    tiers=(
        TierSettings(
            "hbm", 64 << 20, ways=8, admit=0.5, write="none", model=DeviceModel(1e-6, 5e8, 2e12, 2)
        ),
        TierSettings(
            "nvme",
            4 << 30,
            paths=(Path("left.pages"), Path("right.pages")),
            engine="aiofiles",
            queue_depth=64,
            direct=False,
            stripe_bytes=1 << 20,
            faults=FaultSettings(
                3, 0.0, 1e-3, ReadFaultSettings(fail_share=0.5), WriteFaultSettings(lost_share=1.0)
            ),
            model=DeviceModel(70e-6, 5.5e6, 28e9, preset="gen6-nvme"),
        ),
    ),
    origin=OriginSettings(
        "tcp",
        MappingProxyType({"url": "tcp://127.0.0.1:7070"}),
        write="none",
        merge_gap_pages=2,
        extent_pages_max=16,
        model=DeviceModel(50e-6, 1e6, 12.5e9),
    ),
    chain=ChainSettings(1024, 4096, 64, 8 << 20, 1000),
    replay=ReplaySettings(128, 0, "qwen3-8b", 1.0, 0.25),
)


def _load(tmp_path: Path, text: str, overrides: Sequence[str] = ()) -> Settings:
    path = tmp_path / "case.toml"
    path.write_text(text)
    return load_settings(path, overrides)


def _refusal(tmp_path: Path, text: str, overrides: Sequence[str] = ()) -> str:
    with pytest.raises(SettingsError) as refusal:
        _load(tmp_path, text, overrides)
    message = str(refusal.value)
    assert "\n" not in message
    return message.replace(f"{tmp_path}/", "")


def test_every_setting_can_be_written_in_toml(tmp_path: Path) -> None:
    assert _load(tmp_path, EVERYTHING) == EVERY_SETTING


def test_tiers_stand_in_their_order_whatever_the_order_of_their_tables(tmp_path: Path) -> None:
    text = '[tiers.nvme]\ncapacity = "1 GiB"\n[tiers.hbm]\ncapacity = "1 MiB"\n'
    assert [tier.name for tier in _load(tmp_path, text).tiers] == ["hbm", "nvme"]


def test_without_a_file_three_small_tiers_and_an_origin_of_files() -> None:
    settings = default_settings()
    assert [(tier.name, tier.capacity_bytes >> 20) for tier in settings.tiers] == [
        ("hbm", 64),
        ("dram", 256),
        ("nvme", 1024),
    ]
    assert settings.origin == OriginSettings("file")
    rest = dataclasses.replace(settings, tiers=(), origin=None)
    assert rest == Settings()


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    settings = _load(
        tmp_path,
        EVERYTHING,
        [
            "tiers.hbm.capacity=1GiB",
            "tiers.dram.capacity = 2 GiB",
            "origin.options.url=tcp://10.0.0.1:7070",
            "replay.concurrency=256",
            "tiers.nvme.direct=true",
            "device=auto",
        ],
    )
    assert [tier.capacity_bytes >> 30 for tier in settings.tiers] == [1, 2, 4]
    assert settings.tiers[2].direct
    assert settings.origin is not None
    assert settings.origin.options == {"url": "tcp://10.0.0.1:7070"}
    assert settings.replay.concurrency == 256
    assert settings.device == "auto"


def test_the_last_of_two_overrides_wins() -> None:
    assert load_settings(None, ["seed=2", "seed=3"]).seed == 3


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("a.b=1GiB", "a.b", "1GiB"),
        ("a=12", "a", 12),
        ("a=-0.5", "a", -0.5),
        ("a = true", "a", True),
        ("a='12'", "a", "12"),
        ("a=x=y", "a", "x=y"),
        ("a=", "a", ""),
        ("a=[1, 2]", "a", [1, 2]),
        ("a={ b = 1 }", "a", {"b": 1}),
        ("a=0x1_0000_0000_0000_0000", "a", "0x1_0000_0000_0000_0000"),
        ("a=" + "[" * 40 + "]" * 40, "a", "[" * 40 + "]" * 40),
        ("a=2024-01-01", "a", "2024-01-01"),
        ("a=1\nb = 2", "a", "1\nb = 2"),
    ],
)
def test_an_assignment_is_a_toml_value_or_text(text: str, key: str, value: object) -> None:
    assert parse_assignment(text) == (key, value)


def test_an_inline_table_is_a_table_of_settings() -> None:
    settings = load_settings(None, ["tiers.dram={ capacity = '2 GiB', ways = 8 }"])
    assert (settings.tiers[1].capacity_bytes, settings.tiers[1].ways) == (2 << 30, 8)
    with pytest.raises(SettingsError, match=r"--set: unknown key tiers\.dram\.capcity; did you"):
        load_settings(None, ["tiers.dram={ capcity = '2 GiB' }"])


def test_a_key_without_end_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--set origin.*…: no key has so many parts"):
        load_settings(None, [f"origin.options{'.a' * 5000}=1"])


def test_an_option_that_json_has_no_number_for_is_described_as_text() -> None:
    settings = load_settings(None, ["origin.options.rate=inf"])
    assert to_dict(settings)["origin"]["options"] == {"rate": "inf"}


@pytest.mark.parametrize("text", ["", "tiers", "=1", "a..b=1", ".=1"])
def test_an_assignment_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="write --set KEY=VALUE"):
        parse_assignment(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", "case.toml: unknown key sed; did you mean seed?"),
        (
            "[tiers.dram]\ncapcity = '1 GiB'",
            "case.toml: unknown key tiers.dram.capcity; did you mean tiers.dram.capacity?",
        ),
        ("[tiers.drum]", "case.toml: unknown key tiers.drum; did you mean tiers.dram?"),
        ("[tiers.ssd]", "case.toml: unknown key tiers.ssd; known here: hbm, dram, nvme"),
        (
            "[tiers.dram]\ncapacity = '1 GiB'\nname = 'x'",
            "case.toml: unknown key tiers.dram.name; known here: capacity, ways, admit",
        ),
        (
            "[chain]\nstaging_bytes = 1",
            "case.toml: unknown key chain.staging_bytes; did you mean chain.staging?",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(
    tmp_path: Path, text: str, message: str
) -> None:
    assert _refusal(tmp_path, text).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[tiers.dram]\ncapacity = '64 parsecs'",
            "case.toml: tiers.dram.capacity: '64 parsecs' is no size; write e.g. '64 GiB'",
        ),
        (
            "[origin]\nbackend = 'file'\nmodel = {latency = 80, iops = 1, bandwidth = '1 GB/s'}",
            "case.toml: origin.model.latency: 80 is no time; write e.g. '80 us'",
        ),
        (
            "[origin]\nbackend = 'file'\nmodel = {latency = '80 us', iops = 1, bandwidth = 7e9}",
            "case.toml: origin.model.bandwidth: 7000000000.0 is no rate; write e.g. '7 GB/s'",
        ),
        ("seed = '1'", "case.toml: seed is '1': it must be a whole number"),
        ("seed = true", "case.toml: seed is True: it must be a whole number"),
        ("seed = 1.5", "case.toml: seed is 1.5: it must be a whole number"),
        ("device = 'gpu'", "case.toml: device is 'gpu': it must be one of auto, cuda, cpu"),
        ("[replay]\nverify_share = nan", "case.toml: replay.verify_share is nan: it must be a"),
        ("[replay]\nmodel = 8", "case.toml: replay.model is 8: it must be a text"),
        ("tiers = 3", "case.toml: tiers is 3: it must be a table"),
        ("[tiers]\ndram = '1 GiB'", "case.toml: tiers.dram is '1 GiB': it must be a table"),
        ("chain = []", "case.toml: chain is []: it must be a table"),
        ("[origin]\nbackend = 'file'\noptions = 1", "case.toml: origin.options is 1: it must be"),
        ("[tiers.dram]", "case.toml: tiers.dram.capacity is missing: it has no default"),
        ("[origin]", "case.toml: origin.backend is missing: it has no default"),
    ],
)
def test_a_wrong_type_or_unit_names_file_key_and_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    assert _refusal(tmp_path, text).startswith(message)


DRAM = '[tiers.dram]\ncapacity = "1 GiB"\n'


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("page_bytes=1000", "page_bytes is 1000: it must be a multiple of 512"),
        ("seed=-1", "seed is -1: it must be from 0 to"),
        ("tiers.dram.ways=12", "tiers.dram.ways is 12: it must be 8, 16 or 32"),
        ("tiers.dram.capacity=63KiB", "tiers.dram.capacity is 63 KiB: it must hold one set"),
        ("tiers.dram.admit=1.01", "tiers.dram.admit is 1.01: it must be from 0 to 1"),
        (
            "tiers.dram.admit=third touch",
            "tiers.dram.admit is 'third touch': it must be 'all', 'second touch', or a share",
        ),
        ("tiers.dram.admit=true", "tiers.dram.admit is True: it must be 'all', 'second touch'"),
        ("tiers.dram.write_limit=1 MB/s", "tiers.dram.write_limit: only the nvme tier has"),
        ("tiers.dram.path=file", "tiers.dram.path: only the nvme tier has a file"),
        ("tiers.dram.paths=['file']", "tiers.dram.paths: only the nvme tier has a file"),
        ("tiers.dram.faults={ seed = 2 }", "tiers.dram.faults: only the nvme tier has a file"),
        ("tiers.dram.stripe=63KiB", "tiers.dram.stripe is 63 KiB: it must be from 64 KiB"),
        ("tiers.dram.queue_depth=0", "tiers.dram.queue_depth is 0: it must be from 1"),
        ("tiers.dram.segment=1KiB", "tiers.dram.segment is 1 KiB: it must be from 1 MiB to 1 GiB"),
        ("tiers.dram.segment=2GiB", "tiers.dram.segment is 2 GiB: it must be from 1 MiB to 1 GiB"),
        ("tiers.dram.merge_gap_pages=-1", "tiers.dram.merge_gap_pages is -1: it must be from 0"),
        ("tiers.dram.extent_pages_max=0", "tiers.dram.extent_pages_max is 0: it must be from 1"),
        (
            "tiers.dram.extent_pages_max=257",
            "tiers.dram.extent_pages_max is 257: it must fit into one device batch, "
            "chain.device_batch_pages = 256",
        ),
        ("chain.objects_max=4294967296", "chain.objects_max is 4294967296: it must be from 1"),
        ("chain.inflight_pages_max=1000", "chain.inflight_pages_max is 1000: it must hold one"),
        ("chain.staging=1MiB", "chain.staging is 1 MiB: it must hold two buffers of 256 pages"),
        ("replay.concurrency=0", "replay.concurrency is 0: it must be from 1"),
        ("replay.pages_per_block=-4", "replay.pages_per_block is -4: it must be from 0"),
        ("replay.verify_share=2", "replay.verify_share is 2.0: it must be from 0 to 1"),
        ("replay.series_interval=0s", "replay.series_interval is 0 ns: it must be from 1 us"),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, override: str, message: str) -> None:
    assert _refusal(tmp_path, DRAM, [override]).startswith(f"--set: {message}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("path=a", "paths is given beside tiers.nvme.path: give one of the two"),
        ("paths=['x/a', 'x/b', 'x/a']", "paths names "),
        ("faults.delay_share=2", "faults.delay_share is 2.0: it must be from 0 to 1"),
        ("faults.delay=2h", "faults.delay is 120 min: it must be from 0 ns to 60 min"),
        ("faults.seed=-1", "faults.seed is -1: it must be from 0"),
        ("faults.reads.flipped_share=-1", "faults.reads.flipped_share is -1.0: it must be from 0"),
        (
            "faults.writes={ torn_share = 0.6, lost_share = 0.6 }",
            "faults.writes: its shares add up to 1.2: they must be 1 at most",
        ),
    ],
)
def test_what_a_drive_cannot_be_is_refused(tmp_path: Path, override: str, message: str) -> None:
    nvme = "[tiers.nvme]\ncapacity = '1 GiB'\npaths = ['a', 'b']\n"
    refusal = _refusal(tmp_path, nvme, [f"tiers.nvme.{override}"])
    assert refusal.partition(": ")[2].startswith(f"tiers.nvme.{message}")


@pytest.mark.parametrize(
    "override",
    [
        "path=a",
        "paths=['a', 'b']",
        "engine=threads",
        "queue_depth=64",
        "direct=false",
        "stripe=1MiB",
        "rebuild=true",
        "write_buffer=1MiB",
        "segment=8MiB",
        "faults={ seed = 2 }",
    ],
)
def test_a_tier_in_memory_is_asked_for_nothing_that_files_have(
    tmp_path: Path, override: str
) -> None:
    refusal = _refusal(tmp_path, DRAM, [f"tiers.dram.{override}"])
    key = override.partition("=")[0]
    assert refusal == f"--set: tiers.dram.{key}: only the nvme tier has a file"


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("stripe=1MiB", "stripe is of several files: give tiers.nvme.paths, or leave it out"),
        ("rebuild=true", "rebuild: without tiers.nvme.path the file is a temporary one"),
    ],
)
def test_a_temporary_drive_is_asked_for_nothing_that_named_files_have(
    tmp_path: Path, override: str, advice: str
) -> None:
    nvme = "[tiers.nvme]\ncapacity = '1 GiB'\n"
    refusal = _refusal(tmp_path, nvme, [f"tiers.nvme.{override}"])
    assert refusal.startswith(f"--set: tiers.nvme.{advice}")


def test_how_a_drive_misbehaves_is_read_from_its_table(tmp_path: Path) -> None:
    settings = load_settings(
        None,
        [
            "tiers.nvme.faults.delay=3ms",
            "tiers.nvme.faults.reads.short_share=0.25",
            "tiers.nvme.faults.writes.torn_share=1",
        ],
    )
    assert settings.tiers[-1].faults == FaultSettings(
        delay_s=0.003,
        reads=ReadFaultSettings(short_share=0.25),
        writes=WriteFaultSettings(torn_share=1.0),
    )


@pytest.mark.parametrize("key", ["latency", "iops", "bandwidth"])
def test_a_model_out_of_range_is_refused(tmp_path: Path, key: str) -> None:
    values = {"latency": "'1 us'", "iops": "1e6", "bandwidth": "'1 GB/s'"}
    values[key] = {"latency": "'2 h'", "iops": "0", "bandwidth": "'0 B/s'"}[key]
    model = "".join(f"{name} = {value}\n" for name, value in values.items())
    assert f"tiers.dram.model.{key} is" in _refusal(tmp_path, f"{DRAM}[tiers.dram.model]\n{model}")


def test_an_unknown_preset_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    text = f"{DRAM}[tiers.dram.model]\npreset = 'gen5-nmve'"
    message = _refusal(tmp_path, text)
    assert message.startswith("case.toml: tiers.dram.model.preset is 'gen5-nmve': it must be one")
    assert message.endswith("did you mean gen5-nvme?")


def test_a_preset_gives_what_a_model_leaves_out(tmp_path: Path) -> None:
    settings = _load(tmp_path, DRAM, ["tiers.dram.model.preset=gen5-nvme"])
    assert settings.tiers[0].model == MODEL_PRESETS["gen5-nvme"].model
    settings = _load(
        tmp_path, DRAM, ["tiers.dram.model.preset=gen5-nvme", "tiers.dram.model.devices=4"]
    )
    assert settings.tiers[0].model == replace(MODEL_PRESETS["gen5-nvme"].model, devices=4)


def test_the_source_of_a_model_says_when_it_is_not_the_preset_alone() -> None:
    preset = MODEL_PRESETS["gen5-nvme"]
    assert model_source(replace(preset.model, devices=9)) == preset.source
    assert model_source(replace(preset.model, iops=1.0)).startswith("given in the settings; what")
    assert model_source(DeviceModel(1.0, 1.0, 1.0)) == "given in the settings"


def test_a_tier_without_capacity_is_left_out(tmp_path: Path) -> None:
    text = f"{DRAM}[origin]\nbackend = 'memory'"
    assert _load(tmp_path, text, ["tiers.dram.capacity=0"]).tiers == ()
    assert "tiers is empty" in _refusal(tmp_path, DRAM, ["tiers.dram.capacity=0"])


def test_coalescing_is_turned_off_only_without_tiers(tmp_path: Path) -> None:
    text = f"{DRAM}[origin]\nbackend = 'memory'"
    off = "chain.coalesce=false"
    assert not _load(tmp_path, text, ["tiers.dram.capacity=0", off]).chain.coalesce
    assert _refusal(tmp_path, text, [off]).startswith(
        "--set: chain.coalesce is false: a tier folds"
    )


def test_a_problem_between_settings_names_the_file_unless_it_was_set_by_hand(
    tmp_path: Path,
) -> None:
    text = f"{DRAM}extent_pages_max = 500"
    assert _refusal(tmp_path, text).startswith("case.toml: tiers.dram.extent_pages_max is 500")


def test_no_level_at_all_is_refused(tmp_path: Path) -> None:
    assert _refusal(tmp_path, "seed = 1").startswith("case.toml: tiers is empty")


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    message = _refusal(tmp_path, DRAM, ["tiers.dram.capacity.big=1"])
    assert (
        message == "--set tiers.dram.capacity.big: capacity is a value, it has no keys of its own"
    )


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no such file"):
        load_settings(tmp_path / "none.toml")


def test_a_directory_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"seed = ",
        b"\xff\xfe",
        b"seed = " + b"9" * 400,
        b"seed = " + b"9" * 5000,
        b"seed = 0x" + b"f" * 9000,
        b"seed = " + b"[" * 50 + b"]" * 50,
        b"a = " + b"[" * 100_000,
        b".".join([b"a"] * 5000) + b" = 1",
    ],
)
def test_text_that_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "case.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"case\.toml: is no TOML"):
        load_settings(path)


_json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["hbm", "dram", "capacity", "model", "iops", "options", "x"]), inner
        )
    ),
    max_leaves=8,
)


@given(key=st.sampled_from(["page_bytes", "tiers", "origin", "chain", "replay"]), value=_json_like)
@hypothesis_settings(deadline=None, max_examples=300)
def test_any_document_is_settings_or_one_line_of_refusal(key: str, value: Any) -> None:
    refusal = "case.toml: none"
    try:
        build_settings({key: value}, "case.toml")
    except SettingsError as error:
        refusal = str(error)
    assert refusal.startswith("case.toml: ")


@pytest.mark.parametrize("names", [["dram", "hbm"], ["dram", "dram"], ["nvme", "dram"]])
def test_tiers_built_by_hand_must_stand_in_their_order(names: list[Any]) -> None:
    tiers = tuple(TierSettings(name, 1 << 20) for name in names)
    with pytest.raises(SettingsError, match="each may be there once, in the order hbm, dram, nvme"):
        validate(Settings(tiers=tiers))


def test_a_tier_built_by_hand_must_have_a_known_name() -> None:
    tier = TierSettings("ssd", 1 << 20)  # type: ignore[arg-type]  # what a caller without mypy does
    with pytest.raises(SettingsError, match=r"tiers\.ssd is no tier: hbm, dram, nvme"):
        validate(Settings(tiers=(tier,)))


def test_settings_are_described_as_json_under_their_field_names() -> None:
    described = json.loads(json.dumps(to_dict(EVERY_SETTING)))
    assert described["page_bytes"] == 8192
    assert described["tiers"][0]["model"] == {
        "latency_s": 1e-6,
        "iops": 5e8,
        "bytes_per_s": 2e12,
        "devices": 2,
        "preset": "custom",
    }
    assert described["tiers"][1]["paths"] == ["left.pages", "right.pages"]
    assert described["origin"]["options"] == {"url": "tcp://127.0.0.1:7070"}
    assert described["chain"]["staging_bytes"] == 8 << 20


def test_descriptions_hold_no_secrets() -> None:
    options = {
        "auth_token": "hidden",
        "password": "hidden",
        "access_key": "hidden",
        "url": "redis://me:hidden@host:6379/0?token=hidden&db=1",
        "nested": {"Secret": ["hidden"], "urls": ["tcp://:hidden@host"]},
        "key_prefix": "shown",
    }
    described = to_dict(Settings(origin=OriginSettings("redis", options)))["origin"]["options"]
    assert "hidden" not in json.dumps(described)
    assert described["url"] == "redis://me:***@host:6379/0?token=***&db=1"
    assert described["key_prefix"] == "shown"


def test_each_level_has_a_model_and_each_is_slower_than_the_one_above() -> None:
    models = [default_model(name) for name in ("hbm", "dram", "nvme", "origin")]
    assert models[0].bytes_per_s / 4096 == pytest.approx(518e6)
    assert [model.iops for model in models] == sorted((m.iops for m in models), reverse=True)
    assert [m.bytes_per_s for m in models] == sorted((m.bytes_per_s for m in models), reverse=True)


def test_admission_is_everything_the_second_touch_or_a_share() -> None:
    for value, admit in (("all", 1.0), ("second touch", "second touch"), ("0.25", 0.25)):
        settings = load_settings(None, [f"tiers.nvme.admit={value}"])
        assert settings.tiers[-1].admit == admit
        assert to_dict(settings)["tiers"][-1]["admit"] == admit


def test_a_last_tier_that_nothing_would_fill_is_refused(tmp_path: Path) -> None:
    text = DRAM + 'admit = "second touch"\n'
    assert "tiers.dram.admit is 'second touch': without an origin" in _refusal(tmp_path, text)
    above = '[tiers.hbm]\ncapacity = "1 MiB"\nadmit = "second touch"\n'
    path = tmp_path / "fine.toml"
    path.write_text(above + DRAM)
    assert load_settings(path).tiers[0].admit == "second touch"


def test_a_write_limit_is_a_rate() -> None:
    settings = load_settings(None, ["tiers.nvme.write_limit=200 MB/s"])
    assert settings.tiers[-1].write_limit_bytes_per_s == 200e6
    with pytest.raises(SettingsError, match="200 is no rate"):
        load_settings(None, ["tiers.nvme.write_limit=200"])
    with pytest.raises(SettingsError, match=r"tiers\.nvme\.write_limit is .* it must be from"):
        load_settings(None, ["tiers.nvme.write_limit=0 B/s"])
