"""The backend of the guide: installed as a distribution of its own, found by its entry point."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/sqlite-backend"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the example's source, and ``site`` with what was installed from it."""
    directory = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, directory / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--target", str(directory / "site"), str(directory / "source"))
    return directory


def run(*command: str, path: Path | None = None) -> str:
    environment = dict(os.environ)
    if path is not None:
        inherited = environment.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = f"{path}{os.pathsep}{inherited}"
    cwd = None if path is None else path.parent
    done = subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_is_found_by_its_entry_point(installed: Path) -> None:
    code = "from kvtier.registry import available; print(available()['sqlite'])"
    found = run(sys.executable, "-c", code, path=installed / "site")
    assert found.strip() == "kvtier_sqlite:SqliteBackend"


def test_the_example_passes_the_suite_as_its_author_runs_it(installed: Path) -> None:
    (installed / "tests").mkdir()
    for name in ("conftest.py", "test_kvtier_sqlite.py"):
        shutil.copy(EXAMPLE / name, installed / "tests")
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    out = run(*pytest_, "--rootdir", str(installed), "tests", path=installed / "site")
    passed = re.search(r"(\d+) passed", out)
    assert passed is not None, out
    assert int(passed[1]) > 100


def test_the_guide_shows_the_example_as_it_is() -> None:
    guide = (ROOT / "docs/write-a-backend.md").read_text()
    for name in ("kvtier_sqlite.py", "pyproject.toml", "test_kvtier_sqlite.py"):
        assert (EXAMPLE / name).read_text().strip() in guide, name
