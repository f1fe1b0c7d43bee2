"""How often a drive misbehaves on purpose, for those who test what they build on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final

from kvtier.settings.problems import Problem, outside
from kvtier.units import format_seconds

_DELAY_MAX_S: Final = 3600.0
_SEED_MAX: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class ReadFaultSettings:
    """Shares of reads; one read has one fault at most, so together they are 1 at most.

    Attributes:
        fail_share: fail with EIO.
        short_share: end inside the extent; the memory behind stays as it was.
        misdirected_share: bring what lies elsewhere in the file.
        flipped_share: bring one wrong bit; the file is as it was.
    """

    fail_share: float = 0.0
    short_share: float = 0.0
    misdirected_share: float = 0.0
    flipped_share: float = 0.0


@dataclass(frozen=True, slots=True)
class WriteFaultSettings:
    """Shares of writes; one write has one fault at most, so together they are 1 at most.

    Attributes:
        fail_share: fail with EIO; nothing is written.
        full_share: fail with ENOSPC; nothing is written.
        short_share: end inside the extent, and say so.
        torn_share: report success, but the last sectors of 512 bytes were not written.
        lost_share: report success, but nothing was written.
        misdirected_share: report success, but the bytes lie elsewhere in the file.
        flipped_share: report success, but one bit is wrong.
    """

    fail_share: float = 0.0
    full_share: float = 0.0
    short_share: float = 0.0
    torn_share: float = 0.0
    lost_share: float = 0.0
    misdirected_share: float = 0.0
    flipped_share: float = 0.0


@dataclass(frozen=True, slots=True)
class FaultSettings:
    """How often a drive misbehaves; :class:`kvtier.io.faults.FaultyEngine` does it.

    Attributes:
        seed: of what befalls which operation.
        delay_share: operations that take longer, by a random share of ``delay_s``.
        delay_s: how much longer, at most.
        reads, writes: what befalls each.
    """

    seed: int = 1
    delay_share: float = 0.0
    delay_s: float = 0.0
    reads: ReadFaultSettings = ReadFaultSettings()
    writes: WriteFaultSettings = WriteFaultSettings()


def fault_problems(prefix: str, faults: FaultSettings) -> Iterator[Problem]:
    """Dotted keys that are out of range, each with a sentence that begins with it."""
    yield from outside(f"{prefix}.seed", faults.seed, 0, _SEED_MAX)
    yield from outside(f"{prefix}.delay_share", faults.delay_share, 0, 1)
    yield from outside(f"{prefix}.delay", faults.delay_s, 0, _DELAY_MAX_S, format_seconds)
    for name in ("reads", "writes"):
        shares = shares_of(getattr(faults, name))
        for kind, share in shares.items():
            yield from outside(f"{prefix}.{name}.{kind}_share", share, 0, 1)
        if sum(shares.values()) > 1 + 1e-9:
            key = f"{prefix}.{name}"
            yield Problem(
                key,
                f"{key}: its shares add up to {sum(shares.values()):g}: they must be 1 at most, "
                "for an operation has one fault at most",
            )


def shares_of(kinds: ReadFaultSettings | WriteFaultSettings) -> dict[str, float]:
    """The share of each kind of fault, by its name without ``_share``."""
    return {
        field.name.removesuffix("_share"): getattr(kinds, field.name) for field in fields(kinds)
    }
