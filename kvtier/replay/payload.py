"""Payload for replays: pages that carry a pattern of their identity, and the check of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvtier.directory import ObjectDirectory
from kvtier.pages import I64, U8, U64, PageStatus, object_ids_of, page_indices_of
from kvtier.pattern import check_pattern, fill_pattern, key_fingerprint


def pattern_pages(keys: Sequence[bytes], counts: I64, page_bytes: int) -> U8:
    """Every page of the objects, object after object: u8[sum(counts), page_bytes]."""
    out = np.empty((int(counts.sum()), page_bytes), np.uint8)
    fill_pattern(out, *page_identities(keys, counts))
    return out


def page_identities(keys: Sequence[bytes], counts: I64) -> tuple[U64, U64]:
    """Key fingerprint and page index (u64[sum(counts)] each) of every page of the objects."""
    prints = np.array([key_fingerprint(key) for key in keys], np.uint64)
    starts = np.cumsum(counts) - counts
    pages = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(starts, counts)
    return np.repeat(prints, counts), pages.astype(np.uint64)


class Verifier:
    """Checks a random share of the pages that a replay delivers.

    Args:
        share: of the delivered pages, 0 to 1.
        directory: says which object a PageId names.
        rng: chooses the pages.

    Attributes:
        checked_pages, corrupt_pages: counts so far.
    """

    def __init__(self, share: float, directory: ObjectDirectory, rng: np.random.Generator) -> None:
        self._share = share
        self._directory = directory
        self._rng = rng
        self.checked_pages = 0
        self.corrupt_pages = 0

    def check(self, page_ids: U64, status: U8, rows: U8) -> None:
        """Check a sample of ``rows`` (u8[n, page_bytes]) that were read for ``page_ids``."""
        chosen = np.flatnonzero(self._rng.random(len(page_ids)) < self._share)
        chosen = chosen[status[chosen] == PageStatus.OK]
        ids, number = np.unique(object_ids_of(page_ids[chosen]), return_inverse=True)
        entries = [self._directory.by_id(int(object_id)) for object_id in ids]
        known = np.array([entry is not None for entry in entries], np.bool_)[number]
        prints = np.array([key_fingerprint(e.key) if e else 0 for e in entries], np.uint64)
        # An object that was retired since it was read has no name any more to check it against.
        chosen, number = chosen[known], number[known]
        pages = page_indices_of(page_ids[chosen]).astype(np.uint64)
        matches = check_pattern(rows, chosen, prints[number], pages)
        self.checked_pages += len(chosen)
        self.corrupt_pages += int(np.count_nonzero(~matches))
