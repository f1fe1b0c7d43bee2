"""What a log holds when it is opened again: which of the objects found in it still count."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

import numpy as np

from kvtier.identities import (
    FINGERPRINT,
    GENERATION,
    KEY,
    LENGTH,
    LOCAL_LENGTH,
    VERSION,
    Restored,
)
from kvtier.io import FileEngine
from kvtier.io.gate import outlast
from kvtier.pages import I64, U64, Bool
from kvtier.tiers.log_format import LogLayout
from kvtier.tiers.log_mirror import LogMirror
from kvtier.tiers.log_retired import RetiredKeys
from kvtier.tiers.log_scan import LogScan

DROPPED_MAX: Final = 1 << 16
"""Objects that are retired one by one; if more are, all that is as old as they is given up."""


class LogContent(NamedTuple):
    """What was found in a log.

    Attributes:
        page_ids: u64[n].
        locations: i64[n].
        generations: u64[segments], the newest of each; 0: never written.
        restored: the objects of those pages.
    """

    page_ids: U64
    locations: I64
    generations: U64
    restored: Restored


async def read_log(
    file: FileEngine, layout: LogLayout, mirror: LogMirror, retired: RetiredKeys
) -> LogContent:
    """Read a log's metadata, and fill the mirror and the identities from it.

    Of two objects with one id, the one that was written last counts; of two with one key, the one
    with the newer version, or of an origin's, the one that was written last. What is retired does
    not count, nor do the oldest objects beyond the directory's bound: those are retired now.
    """
    scan = LogScan(file, layout, mirror, retired.floor)
    await scan.run()
    if await scan.clear():
        await retired.sync()
    retired.settle(int(mirror.generations.max()))
    identities = mirror.identities
    objects = identities.table[identities.table[:, KEY] > 0]
    next_object_id = int(objects[:, KEY].max(initial=0)) % (1 << 32)
    words, versions = retired.versions()
    local = _is_local(objects)
    next_version = 1 + max(
        int(objects[local, VERSION].max(initial=0)), int(versions.max(initial=0))
    )
    objects, dropped = _select(objects, words, versions, identities.objects_max)
    identities.replace(objects)
    loop = asyncio.get_running_loop()
    pages = await outlast(loop.run_in_executor(None, scan.keep))
    if len(dropped):
        _retire(dropped, retired, mirror.generations)
    await retired.save()
    restored = Restored(objects, next_object_id, next_version)
    return LogContent(*pages, mirror.generations.copy(), restored)


def _retire(objects: U64, retired: RetiredKeys, generations: U64) -> None:
    """Retire objects (u64[m, COLUMNS]), one by one or all that is as old as they are."""
    if len(objects) > DROPPED_MAX:
        retired.raise_floor(int(objects[:, GENERATION].max()))
        return
    keys = [(row[FINGERPRINT : FINGERPRINT + 2].tobytes(), int(row[VERSION])) for row in objects]
    retired.add(keys, int(generations.max()), _oldest(generations))


def _oldest(generations: U64) -> int:
    written = generations[generations > 0]
    return int(written.min(initial=(1 << 64) - 1))


def _select(objects: U64, words: U64, versions: U64, objects_max: int) -> tuple[U64, U64]:
    """Which objects count (u64[k, COLUMNS]), and which from now on do not (u64[m, COLUMNS]).

    Of the latter, only those that no origin has: of the others, the origin knows the version.
    """
    objects = objects[~(_is_local(objects) & _is_retired(objects, words, versions))]
    objects, chosen = _newest_of_each_key(objects)
    kept = np.flatnonzero(chosen)
    if len(kept) > objects_max:
        generations = objects[kept, GENERATION]
        oldest = np.argpartition(generations, len(kept) - objects_max)[: len(kept) - objects_max]
        chosen[kept[oldest]] = False
    return objects[chosen], objects[~chosen & _is_local(objects)]


def _newest_of_each_key(objects: U64) -> tuple[U64, Bool]:
    """The objects, those of a key side by side, and bool[n], the one of each key that counts.

    Versions that were counted here are in order. Those of an origin are not: of them, and between
    the two kinds, the generation says which was written last.
    """
    objects = objects[np.argsort(objects[:, FINGERPRINT])]
    if (objects[1:, FINGERPRINT] != objects[:-1, FINGERPRINT]).all():
        return objects, np.ones(len(objects), np.bool_)
    local = _is_local(objects)
    rank = np.where(local, objects[:, VERSION], objects[:, GENERATION])
    order = np.lexsort((rank, local, objects[:, FINGERPRINT + 1], objects[:, FINGERPRINT]))
    objects, local = objects[order], local[order]
    # Of each key and kind the last; of a key that has both, the origin's is before the other.
    chosen = np.append(~_same_key(objects) | (local[1:] != local[:-1]), True)
    places = np.flatnonzero(chosen)
    both = _same_key(objects[places])
    origins, others = places[:-1][both], places[1:][both]
    is_local_newer = objects[others, GENERATION] >= objects[origins, GENERATION]
    chosen[np.where(is_local_newer, origins, others)] = False
    return objects, chosen


def _same_key(objects: U64) -> Bool:
    """bool[n - 1], whether an object and the next one have the same key."""
    prints = objects[:, FINGERPRINT : FINGERPRINT + 2]
    same: Bool = (prints[1:] == prints[:-1]).all(axis=1)
    return same


def _is_local(objects: U64) -> Bool:
    local: Bool = objects[:, LENGTH] & LOCAL_LENGTH != 0
    return local


def _is_retired(objects: U64, words: U64, versions: U64) -> Bool:
    """Whether an object's fingerprint is retired in its version or a later one.

    By its first word: one that is held for retired though it is not is a miss.
    """
    if not len(words):
        return np.zeros(len(objects), np.bool_)
    place = np.minimum(np.searchsorted(words, objects[:, FINGERPRINT]), len(words) - 1)
    retired: Bool = (words[place] == objects[:, FINGERPRINT]) & (
        objects[:, VERSION] <= versions[place]
    )
    return retired
