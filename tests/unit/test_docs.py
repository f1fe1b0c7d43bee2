"""The documentation says what is there: settings, results, commands, and an example that runs."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvtier.cli.parser import build_parser
from kvtier.registry import available
from kvtier.report import schema
from kvtier.settings import (
    BreakerSettings,
    ChainSettings,
    ComputeSettings,
    DeviceModel,
    FaultSettings,
    HostSettings,
    LinkSettings,
    NegativeSettings,
    OriginSettings,
    RateSettings,
    ReadFaultSettings,
    ReplaySettings,
    ResilienceSettings,
    RetrySettings,
    ServeSettings,
    ServingSettings,
    Settings,
    TierSettings,
    TopologySettings,
    WriteFaultSettings,
    load_settings,
)
from kvtier.settings.keys import toml_key
from kvtier.ssd import SsdModel

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_setting_is_documented() -> None:
    documented = set(re.findall(r"[a-z_]+", text("docs/settings.md")))
    kinds = (
        Settings,
        TierSettings,
        OriginSettings,
        ChainSettings,
        ReplaySettings,
        DeviceModel,
        SsdModel,
        TopologySettings,
        LinkSettings,
        ComputeSettings,
        ServingSettings,
        HostSettings,
        ServeSettings,
        ResilienceSettings,
        RetrySettings,
        BreakerSettings,
        NegativeSettings,
        RateSettings,
        FaultSettings,
        ReadFaultSettings,
        WriteFaultSettings,
    )
    keys = {toml_key(field.name) for kind in kinds for field in dataclasses.fields(kind)}
    assert keys - {"name"} - documented == set()


def test_the_demo_settings_are_valid_and_comment_every_line() -> None:
    load_settings(ROOT / "examples" / "demo.toml")
    lines = [line for line in text("examples/demo.toml").splitlines() if " = " in line]
    plain = [line for line in lines if "#" not in line]
    # The second and third line of a kind need no second comment.
    kinds = ("capacity", "latency", "iops", "bandwidth", "extent_pages_max")
    assert [line for line in plain if not line.startswith(kinds)] == []


@pytest.mark.parametrize(
    "path",
    sorted({*EXAMPLES.rglob("*.toml")} - {*EXAMPLES.rglob("pyproject.toml")}),
    ids=lambda path: path.stem,
)
def test_the_settings_of_an_example_are_valid_and_say_what_they_are(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    load_settings(path)


def test_every_backend_over_a_network_has_its_section() -> None:
    sections = re.findall(r"^## `([a-z0-9]+)`$", text("docs/backends.md"), re.MULTILINE)
    assert sorted(sections) == sorted(available().keys() - {"memory", "file"})


def test_every_key_of_a_result_is_documented() -> None:
    documented = set(re.findall(r"[a-z0-9_]+", text("docs/json.md")))
    parts = [getattr(schema, name) for name in dir(schema)]
    keys = {
        key for part in parts if hasattr(part, "__required_keys__") for key in part.__annotations__
    }
    assert keys - documented == set()


def test_every_command_is_in_the_readme() -> None:
    names = re.findall(r"^    ([a-z]+)(?: |$)", build_parser().format_help(), re.MULTILINE)
    assert "replay" in names
    for name in names:
        assert re.search(rf"^kvtier {name}\b", text("README.md"), re.MULTILINE), name


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", text("README.md"))) <= targets


def test_every_link_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_the_python_examples_run(page: str, tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", text(page), re.DOTALL)
    assert examples
    for number, example in enumerate(examples):
        script = tmp_path / f"example_{number}.py"
        script.write_text(example, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-W", "error", str(script)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert "all right: True" in done.stdout
