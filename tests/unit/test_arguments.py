"""What callers hand to a cache by mistake is refused in words that say what to give."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gated_backend import GatedBackend
from small_cache import PAGE, opened, payload, store

from kvtier import Purpose, load_settings, open_cache
from kvtier.errors import LimitError, LoopError, SettingsError

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a"], "the key 'a' is a str: keys are bytes"),
        ([b"b", bytearray(b"a")], r"the key bytearray(b'a') is a bytearray"),
        ([b"b", None], "the key None is a NoneType"),
        (b"a", "keys is the single key b'a': give a list"),
        ("a", "keys is the single key 'a': give a list"),
    ],
)
async def test_keys_are_bytes_in_a_list(keys: Any, message: str) -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        await store(cache, b"a", 1)
        for call in (cache.open, cache.lookup, cache.available, cache.delete):
            with pytest.raises(LimitError, match=re.escape(message)):
                await call(keys)
        with pytest.raises(LimitError, match=re.escape(message)):
            await cache.write(keys, [1] * len(keys), payload(b"a", len(keys)))
        assert await cache.lookup([b"a"]) == 1


async def test_keys_may_come_from_any_iterable_and_be_numpy_bytes() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        await store(cache, b"a", 2)
        keys: Any = (key for key in (b"a", b"none"))
        assert (await cache.open(keys)).pages.tolist() == [2, -1]
        assert await cache.lookup(iter([b"a", b"none"])) == 1  # type: ignore[arg-type]
        assert (await cache.open(np.array([b"a"]))).pages.tolist() == [2]  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [1, [1.5], [[1]], ["1"]])
async def test_page_counts_are_whole_numbers_in_a_list(counts: Any) -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        with pytest.raises(LimitError, match="give a whole number of pages for each key"):
            await cache.write([b"a"], counts, payload(b"a", 1))


async def test_a_payload_that_does_not_fit_is_described() -> None:
    pages = payload(b"a", 4)
    for given, message in (
        (pages.tobytes(), f"payload is a bytes: give a NumPy uint8[2, {PAGE}]"),
        (pages[::2], f"payload is uint8[2, {PAGE}], not contiguous: it must be a C-contiguous"),
        (pages[:2].astype(np.float32), f"payload is float32[2, {PAGE}]: it must be"),
    ):
        async with opened(GatedBackend(PAGE)) as cache:
            with pytest.raises(LimitError, match=re.escape(message)):
                await cache.write([b"a"], [2], given)  # type: ignore[arg-type]


async def test_rows_that_cannot_be_written_are_described() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        ids = await store(cache, b"a", 2)
        sealed = np.empty((2, PAGE), np.uint8)
        sealed.flags.writeable = False
        for out, found in ((sealed, "read-only"), (np.empty((4, PAGE), np.uint8)[::2], "not cont")):
            with pytest.raises(LimitError, match=re.escape(f"out is uint8[2, {PAGE}], {found}")):
                await cache.read(ids, out)


async def test_an_unknown_purpose_is_refused_before_anything_is_counted() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        ids = await store(cache, b"a", 2)
        with pytest.raises(LimitError, match=r"purpose is 'prefix': give a kvtier\.Purpose"):
            await cache.read(ids, purpose="prefix")  # type: ignore[arg-type]
        assert cache.driver.chain.counters.batches == 0
        assert (await cache.read(ids, purpose=Purpose.PREFIX)).ok


async def test_a_cache_is_of_the_loop_that_opened_it() -> None:
    async with opened(GatedBackend(PAGE)) as cache:
        ids = await store(cache, b"a", 2)
        loop = asyncio.get_running_loop()

        def elsewhere() -> bool:
            for call in (lambda: cache.read(ids), lambda: cache.open([b"a"])):
                with pytest.raises(LoopError, match="run_coroutine_threadsafe"):
                    asyncio.run(call())
            return asyncio.run_coroutine_threadsafe(cache.read(ids), loop).result(10).ok

        assert await asyncio.to_thread(elsewhere)


async def test_settings_are_made_by_load_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not a str: load_settings makes them"):
        async with open_cache("cache.toml"):  # type: ignore[arg-type]
            pass
    file = tmp_path / "cache.toml"
    file.write_text("seed = 7\n[tiers.dram]\ncapacity = '1MiB'\n")
    assert load_settings(str(file)) == load_settings(file)
    with pytest.raises(SettingsError, match=r"give overrides as a list, \['seed=7'\]"):
        load_settings(file, "seed=7")
