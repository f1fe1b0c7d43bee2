"""Writers that are killed: a process that forks one writer after the other, on demand.

    python crash_writer.py LOG        (commands on stdin, reports on stdout)

``SEED FIRST_KEY`` starts a writer, which reports what it does until it is killed:

    pid PID
    start KEY VERSION PAGES           before a call; VERSION 0 deletes the key
    done KEY TIME                     after it; TIME of the monotonic clock, in seconds

``dead`` follows once the writer is gone, after everything that it reported.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from kvtier import Settings, TieredCache, open_cache
from kvtier.driver import AsyncDriver
from kvtier.pages import U8
from kvtier.replay.payload import pattern_pages
from kvtier.settings import ChainSettings, TierSettings

PAGE = 4096
CAPACITY_PAGES = 1 << 13
OBJECT_PAGES_MAX = 16


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[TieredCache[AsyncDriver]]:
    """The cache that writers write and the test reads."""
    settings = Settings(
        page_bytes=PAGE,
        tiers=(TierSettings("nvme", CAPACITY_PAGES * PAGE, path=path, segment_bytes=1 << 20),),
        chain=ChainSettings(objects_max=1 << 16),
    )
    async with open_cache(settings) as cache:
        yield cache


def content(key: int, version: int, pages: int) -> U8:
    """What version ``version`` of an object holds."""
    return pattern_pages([b"%d/%d" % (key, version)], np.array([pages]), PAGE)


async def write(path: Path, seed: int, next_key: int) -> None:
    """New objects, and now and then one rewritten or deleted, until killed."""
    rng = random.Random(seed)
    versions: dict[int, int] = {}
    async with opened(path) as cache:
        while True:
            key, version, pages = next_key, 1, rng.randint(1, OBJECT_PAGES_MAX)
            chance = rng.random()
            if versions and chance < 0.1:
                key = rng.choice(list(versions)[-50:])
                version = 0 if chance < 0.05 else versions[key] + 1
            else:
                next_key += 1
            report(f"start {key} {version} {pages}")
            name = b"%d" % key
            if version:
                status = await cache.write([name], [pages], content(key, version, pages))
                assert not status.any()
                versions[key] = version
            else:
                await cache.delete([name])
                del versions[key]
            report(f"done {key} {time.monotonic()}")
            await asyncio.sleep(0.002)  # slower than the drive, or the log would soon be through


def report(line: str) -> None:
    os.write(1, line.encode() + b"\n")


async def warm_up(path: Path) -> None:
    """Have everything compiled before the first fork."""
    async with opened(path) as cache:
        await cache.write([b"warm"], [2], content(0, 1, 2))


def main() -> None:
    path = Path(sys.argv[1])
    asyncio.run(warm_up(path.with_name("warm-up")))
    path.with_name("warm-up").unlink()
    report("ready")
    for line in sys.stdin:
        seed, first_key = map(int, line.split())
        pid = os.fork()
        if pid == 0:
            report(f"pid {os.getpid()}")
            try:
                asyncio.run(write(path, seed, first_key))
            finally:
                os._exit(1)
        os.waitpid(pid, 0)
        report("dead")


if __name__ == "__main__":
    main()
