"""How u32 stamps stand for u64 epochs, by one rule for every engine.

A stamp counts from a *base* epoch: ``stamp = epoch - base``. 0 stands for "at the base or before,
or never", so it is the oldest there is. Before a stamp would not fit, the base is moved up and all
stamps are lowered with it, saturating at 0.
"""

from __future__ import annotations

from typing import Final

from kvtier.errors import LimitError

STAMP_MAX: Final = (1 << 32) - 1
STAMP_HISTORY: Final = 1 << 31
"""Epochs whose order survives a move of the base."""


def base_for(base: int, newest: int, epoch: int, oldest_epoch: int) -> int:
    """The base that stamps count from at ``epoch``; mostly the present one.

    The new base is ``epoch - STAMP_HISTORY``, but always before ``oldest_epoch``, so that the
    stamps of unreleased epochs stay exact.

    Args:
        base: the present base.
        newest: the epoch of the batch before.
        epoch: the epoch of this batch.
        oldest_epoch: the oldest unreleased epoch.

    Raises:
        ValueError: the epochs are out of order.
        LimitError: ``oldest_epoch`` lies too far back for 32 bits.
    """
    if epoch < newest or not base < oldest_epoch <= epoch:
        raise ValueError(
            f"epoch {epoch} with oldest epoch {oldest_epoch} after epoch {newest} (base {base}): "
            "batches pass an index in the order of their epochs, counted from 1"
        )
    if epoch - base <= STAMP_MAX:
        return base
    new_base = min(epoch - STAMP_HISTORY, oldest_epoch - 1)
    if epoch - new_base > STAMP_MAX:
        raise LimitError(
            f"epoch {oldest_epoch} is unreleased at epoch {epoch}: "
            f"at most {STAMP_MAX - 1} epochs may lie between, release it"
        )
    return new_base
