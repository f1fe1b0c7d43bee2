from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from kvtier_memory import MemoryBackend

from kvtier.backend import check_options
from kvtier.errors import BackendError, SettingsError, UnknownBackendError
from kvtier.registry import available, open_backend

FOREIGN = """
from dataclasses import replace
from kvtier_memory import MemoryBackend

class Good(MemoryBackend):
    pass

class Old(MemoryBackend):
    capability = replace(MemoryBackend.capability, api_version=0)

class OldOnceOpen(MemoryBackend):
    closed = 0

    @classmethod
    async def open(cls, options, page_bytes):
        backend = await super().open(options, page_bytes)
        backend.capability = Old.capability
        return backend

    async def close(self):
        type(self).closed += 1

class NoBackend:
    pass
"""

METADATA = """\
Metadata-Version: 2.1
Name: foreign-store
Version: 1.0
Provides-Extra: with-extra
"""

POINTS = """
[kvtier.backends]
good = foreign_store:Good
old = foreign_store:Old
old-once-open = foreign_store:OldOnceOpen
no-backend = foreign_store:NoBackend
no-such-class = foreign_store:Missing
needs-more = foreign_broken:Store
with-extra = foreign_broken:Store
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed distribution that declares backends, as a third party's would."""
    info = tmp_path / "foreign_store-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "foreign_store.py").write_text(FOREIGN)
    (tmp_path / "foreign_broken.py").write_text("import a_client_that_is_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for module in ("foreign_store", "foreign_broken"):
        sys.modules.pop(module, None)


def test_the_backends_of_the_package_are_declared() -> None:
    assert available()["memory"] == "kvtier_memory:MemoryBackend"
    assert {"memory", "file", "tcp", "mooncake", "redis"} <= set(available())


def test_backends_of_others_are_found_without_importing_them(foreign: None) -> None:
    assert available()["needs-more"] == "foreign_broken:Store"
    assert "foreign_broken" not in sys.modules


@pytest.mark.asyncio
class TestOpenBackend:
    async def test_a_backend_is_opened_by_name(self) -> None:
        backend = await open_backend("memory", {}, 4096)
        assert isinstance(backend, MemoryBackend)
        await backend.close()

    async def test_a_backend_of_others_is_opened_by_name(self, foreign: None) -> None:
        backend = await open_backend("good", {}, 512)
        assert type(backend).__name__ == "Good"
        await backend.close()

    async def test_an_unknown_name_gets_the_nearest_and_all(self) -> None:
        with pytest.raises(UnknownBackendError, match=r"did you mean 'memory'\?.*file, memory"):
            await open_backend("memroy", {}, 4096)

    async def test_a_name_like_no_other_gets_the_list(self) -> None:
        with pytest.raises(UnknownBackendError, match=r"installed: there are .*file, memory"):
            await open_backend("qqqq", {}, 4096)

    async def test_options_reach_the_backend(self) -> None:
        with pytest.raises(SettingsError, match="capacity_bytes"):
            await open_backend("memory", {"capacity": 1}, 4096)

    async def test_a_wrong_page_size_is_refused_before_anything_is_imported(
        self, foreign: None
    ) -> None:
        with pytest.raises(SettingsError, match="page_bytes is 1000"):
            await open_backend("good", {}, 1000)
        assert "foreign_store" not in sys.modules

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("old", "version 0 of the backend interface"),
            ("no-backend", r"foreign_store:NoBackend is no kvtier\.backend\.Backend"),
            ("no-such-class", "cannot be imported: AttributeError"),
            ("needs-more", "ModuleNotFoundError: .*a_client_that.*: install what foreign_broken n"),
            ("with-extra", r"ModuleNotFoundError: .*: pip install 'foreign-store\[with-extra\]'"),
        ],
    )
    async def test_what_cannot_be_used_is_refused(
        self, foreign: None, name: str, message: str
    ) -> None:
        with pytest.raises(BackendError, match=message):
            await open_backend(name, {}, 4096)

    async def test_what_turns_out_to_be_old_is_closed_again(self, foreign: None) -> None:
        with pytest.raises(BackendError, match="version 0 of the backend interface"):
            await open_backend("old-once-open", {}, 4096)
        assert sys.modules["foreign_store"].OldOnceOpen.closed == 1

    async def test_a_name_that_two_packages_claim_is_refused(
        self, foreign: None, tmp_path: Path
    ) -> None:
        info = tmp_path / "rival-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[kvtier.backends]\ngood = rival:Store\n")
        with pytest.raises(BackendError, match=r"foreign_store:Good, rival:Store.*uninstall"):
            await open_backend("good", {}, 4096)


ALLOWED: Mapping[str, type | tuple[type, ...]] = {
    "root": (str, Path),
    "threads": int,
    "timeout_s": float,
    "sync": bool,
}


class TestCheckOptions:
    @pytest.mark.parametrize(
        "options",
        [
            {"root": "x"},
            {"root": Path("x"), "threads": 1, "timeout_s": 0.5, "sync": False},
            {"root": "x", "timeout_s": 5},
        ],
    )
    def test_right_options_pass(self, options: dict[str, Any]) -> None:
        check_options(options, ALLOWED, "store", required=("root",))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"root": "x", "thread": 1}, "backend 'store' has no option 'thread'.*'threads'"),
            ({"root": "x", "qq": 1}, "it takes root, sync, threads, timeout_s"),
            ({"root": 1}, "'root' of backend 'store' is 1: it must be of type str or Path"),
            ({"root": "x", "threads": True}, "it must be of type int"),
            ({"root": "x", "threads": 1.0}, "it must be of type int"),
            ({"root": "x", "timeout_s": "5 s"}, "it must be of type float"),
            ({"root": "x", "sync": 1}, "it must be of type bool"),
            ({"threads": 1}, "backend 'store' needs the option 'root'"),
        ],
    )
    def test_wrong_options_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(SettingsError, match=message):
            check_options(options, ALLOWED, "store", required=("root",))
