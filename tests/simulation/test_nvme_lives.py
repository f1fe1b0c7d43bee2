"""A cache without an origin lives several times on a drive that misbehaves: nothing old is served.

What may be found of a key is what was written last, or nothing; while a call has failed, also what
it was to change.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from kept_cache import PAGE, kept, nvme_of

from kvtier import PageStatus, TieredCache
from kvtier.driver import AsyncDriver
from kvtier.errors import DeviceError, SettingsError
from kvtier.pages import U8
from kvtier.settings import FaultSettings, ReadFaultSettings, WriteFaultSettings

pytestmark = pytest.mark.asyncio

KEYS = 12
PAGES_MAX = 11


class Life:
    """Random calls, and what they may find."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.served = 0
        self._allowed: list[set[int]] = [set() for _ in range(KEYS)]
        """Of each key, the contents that may be found."""
        self._contents: list[U8] = []

    def faults(self, share: float) -> FaultSettings:
        """Every kind of fault, but reads that bring something else: those find no log at all."""
        shares = {one.name: share for one in fields(ReadFaultSettings)}
        shares.pop("misdirected_share")
        return FaultSettings(
            seed=self.random.randrange(1 << 30),
            reads=ReadFaultSettings(**shares),
            writes=WriteFaultSettings(**{one.name: share for one in fields(WriteFaultSettings)}),
        )

    async def step(self, cache: TieredCache[AsyncDriver]) -> None:
        """One call."""
        number, chance = self.random.randrange(KEYS), self.random.random()
        try:
            if chance < 0.4:
                await self._write(cache, number)
            elif chance < 0.55:
                await cache.delete([b"%d" % number])
                self._allowed[number] = set()
            elif chance < 0.95:
                await self._read(cache, number)
            else:
                await nvme_of(cache).flush()
        except DeviceError:
            pass  # it may have happened or not

    async def _write(self, cache: TieredCache[AsyncDriver], number: int) -> None:
        pages = self.random.randrange(1, PAGES_MAX + 1)
        content = np.frombuffer(self.random.randbytes(pages * PAGE), np.uint8).reshape(-1, PAGE)
        self._contents.append(content)
        self._allowed[number].add(len(self._contents) - 1)
        assert not (await cache.write([b"%d" % number], [pages], content)).any()
        self._allowed[number] = {len(self._contents) - 1}

    async def _read(self, cache: TieredCache[AsyncDriver], number: int) -> None:
        opened = await cache.open([b"%d" % number])
        if opened.pages[0] < 0:
            return
        result = await cache.read(opened.page_ids())
        good = result.status == PageStatus.OK
        allowed = [self._contents[one] for one in self._allowed[number]]
        same = (one for one in allowed if len(one) == len(good))
        assert not good.any() or any((one[good] == result.pages[good]).all() for one in same)
        self.served += int(np.count_nonzero(good))


@pytest.mark.parametrize("seed", [4, 11, 20, 24])
async def test_what_was_rewritten_or_deleted_is_never_served(tmp_path: Path, seed: int) -> None:
    path, copy = tmp_path / "log", tmp_path / "copy"
    life = Life(seed)
    share = life.random.choice([0.01, 0.05])
    size = {"slots": life.random.choice([64, 256]), "objects_max": life.random.choice([4, 8, 64])}
    for _ in range(8):
        try:
            async with kept(path, faults=life.faults(share), **size) as cache:
                for _ in range(life.random.randrange(5, 40)):
                    await life.step(cache)
                if life.random.random() < 0.5:
                    shutil.copy(path, copy)  # killed here
        except DeviceError:
            pass  # the drive refused at the beginning, or at the end
        except SettingsError:
            path.unlink()  # something was written over its beginning, so it is no log of kvtier
        if copy.exists():
            copy.rename(path)
    assert life.served > 0
