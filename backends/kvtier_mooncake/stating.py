"""Which objects are there, whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvtier.errors import BackendError
from kvtier.pages import U8
from kvtier_mooncake.codes import NO_MASTER
from kvtier_mooncake.heads import find_heads
from kvtier_mooncake.layout import Head, chunk_names
from kvtier_mooncake.limits import NAMES_AT_ONCE


def find_objects(store: Any, names: Sequence[str], slot: U8) -> list[Head | None]:
    """The head of each object, None where there is none or a chunk of it is gone.

    Asking for a chunk also renews its lease, so that it will not be evicted before it is read. An
    object whose host does not answer counts as gone; Mooncake forgets it soon.

    Raises:
        BackendError: the master cannot say.
    """
    found = find_heads(store, names, slot)
    _check_master([one for one in found if not isinstance(one, Head)])
    heads = [one if isinstance(one, Head) else None for one in found]
    owners: list[int] = []
    chunks: list[str] = []
    for item, head in enumerate(heads):
        if head is not None:
            owners += [item] * head.chunk_count()
            chunks += chunk_names(names[item], head)
    for owner, code in zip(owners, _presence(store, chunks), strict=True):
        if code != 1:
            heads[owner] = None
    return heads


def _presence(store: Any, chunks: Sequence[str]) -> list[int]:
    codes: list[int] = []
    for first in range(0, len(chunks), NAMES_AT_ONCE):
        some = store.batch_is_exist(chunks[first : first + NAMES_AT_ONCE])
        _check_master(some)
        codes += some
    return codes


def _check_master(codes: Sequence[int]) -> None:
    lost = NO_MASTER.intersection(codes)
    if lost:
        raise BackendError(
            f"the Mooncake master does not answer (code {min(lost)}): is it still running?"
        )
