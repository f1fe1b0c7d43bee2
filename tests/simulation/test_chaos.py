"""Everything at once, from a seed: no wrong byte, no leak, and sums that hold.

The short form runs with the suite; ``make soak`` runs the long one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from typing import Any

import numpy as np
import pytest
from chaos import Chaos, FaultyBackend, random_settings

from kvtier import TieredCache, open_cache
from kvtier.pages import PageState, object_ids_of, page_indices_of

SEEDS = int(os.environ.get("KVTIER_CHAOS_SEEDS", "6"))


def check_the_end(cache: TieredCache[Any], chaos: Chaos) -> None:
    driver = cache.driver
    counters = driver.chain.counters
    hits = sum(level.hits for level in counters.levels)
    assert counters.reads == counters.unique + counters.folded
    assert counters.unique == hits + counters.joined + counters.failed + counters.absent
    assert 0 <= counters.delivered <= counters.reads
    assert driver.chain.idle
    assert not driver._jobs
    assert not driver._tasks
    assert driver.chain.unreleased_epochs == 0
    assert driver.chain.free_buffers == driver.chain.buffer_count
    directory = cache.catalogue.directory
    assert len(directory._by_id) == len(directory)
    for index, tier in zip(driver.indexes, driver.tiers, strict=True):
        snapshot = index.snapshot()
        assert not (snapshot.states == PageState.PENDING).any()
        slots = np.flatnonzero(snapshot.states == PageState.VALID)
        tags = snapshot.tags[slots]
        names = zip(object_ids_of(tags).tolist(), page_indices_of(tags).tolist(), strict=True)
        for slot, (object_id, page) in zip(slots, names, strict=True):
            assert directory.by_id(object_id) is not None, "a page of a retired object"
            if tier.in_memory:
                np.testing.assert_array_equal(tier.arena[slot], chaos.content_of[object_id][page])


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_chaos(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    rng = random.Random(seed)
    made = random_settings(rng)
    async with open_cache(made, origin=FaultyBackend(rng)) as cache:
        chaos = Chaos(cache, rng)
        for _ in range(6):
            await asyncio.wait_for(asyncio.gather(*(chaos.call() for _ in range(25))), 60)
        await cache.drain()
        check_the_end(cache, chaos)
