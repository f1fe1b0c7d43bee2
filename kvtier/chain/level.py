"""What the chain knows of a level."""

from __future__ import annotations

from dataclasses import dataclass

from kvtier.chain.admission import AdmissionRule
from kvtier.chain.extents import ExtentRules
from kvtier.chain.write_limit import WriteLimit


@dataclass(frozen=True, slots=True)
class Level:
    """A tier or the origin.

    Attributes:
        name: for messages.
        in_memory: its slots can be copied from directly; a device is fetched from.
        admit: which missed pages reserve a slot.
        writes: written objects are kept here.
        rules: how its device reads are merged and packed.
        write_limit: what its device may be written; None: as much as it takes.
    """

    name: str
    in_memory: bool
    admit: AdmissionRule
    writes: bool
    rules: ExtentRules
    write_limit: WriteLimit | None = None
