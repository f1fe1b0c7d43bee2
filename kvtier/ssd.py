"""What a flash drive can do at most, from how it is built.

The formulas are those of "Five-Minute Rule 40 Years Later: A First-Principles Revisit for Modern
Memory Hierarchy" (arXiv 2511.03944), where an I/O is no larger than a NAND page. A larger one is
read with a sense and a command per NAND page that it covers.

A *rate* of a die or a channel counts host and internal operations alike: garbage collection adds
``write_amplification - 1`` reads and as many writes to each write of the host.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from kvtier.errors import SettingsError

SECTOR_BYTES: Final = 512
"""The unit of a drive's sizes: of its NAND pages and of I/O."""

PLANES_MAX: Final = 1 << 24
"""Most planes of all drives together: the emulator keeps 16 bytes for each."""

IO_BYTES_MAX: Final = 1 << 30
"""Largest I/O that a model is asked about."""

_RANGES: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "channels": (1, 256),
        "dies_per_channel": (1, 256),
        "planes_per_die": (1, 64),
        "nand_page_bytes": (SECTOR_BYTES, 1 << 20),
        "sense_us": (1e-3, 1e6),
        "program_us": (1e-3, 1e6),
        "command_ns": (0, 1e6),
        "channel_bytes_per_s": (1e6, 1e13),
        "link_bytes_per_s": (1e6, 1e13),
        "reads_per_write": (0, math.inf),
        "write_amplification": (1, 100),
    }
)
_COUNTS: Final = ("channels", "dies_per_channel", "planes_per_die", "nand_page_bytes")


@dataclass(frozen=True, slots=True)
class SsdModel:
    """One flash drive and the mix of random I/O that it serves.

    Attributes:
        channels: buses between the controller and the dies.
        dies_per_channel: dies that share a channel.
        planes_per_die: planes sense and program on their own.
        nand_page_bytes: what a plane senses or programs at once, a multiple of 512.
        sense_us: time of a plane to read a NAND page.
        program_us: time of a plane to write a NAND page.
        command_ns: time of a channel per NAND page, beside its bytes.
        channel_bytes_per_s: bandwidth of one channel, decimal.
        link_bytes_per_s: bandwidth between host and drive, decimal.
        reads_per_write: the host's reads per write of its own; ``math.inf`` where it only reads.
        write_amplification: writes to flash per write of the host.

    Raises:
        SettingsError: no drive can be built so; the message names the field.
    """

    channels: int
    dies_per_channel: int
    planes_per_die: int
    nand_page_bytes: int
    sense_us: float
    program_us: float
    command_ns: float
    channel_bytes_per_s: float
    link_bytes_per_s: float
    reads_per_write: float = 9.0
    write_amplification: float = 3.0

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise SettingsError(f"{name} is {value}: it must be {least:g} to {most:g}")
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int):
                raise SettingsError(f"{name} is {value}: it must be a whole number")
        if self.nand_page_bytes % SECTOR_BYTES:
            raise SettingsError(
                f"nand_page_bytes is {self.nand_page_bytes}: "
                f"it must be a multiple of {SECTOR_BYTES}"
            )

    @property
    def planes(self) -> int:
        """Planes of the drive."""
        return self.channels * self.dies_per_channel * self.planes_per_die

    # -- the mix ------------------------------------------------------------------------------

    @property
    def read_share(self) -> float:
        """Reads among all operations on flash: ``(G + W - 1) / (G + 2W - 1)``."""
        return 1.0 - self.write_share

    @property
    def write_share(self) -> float:
        """Writes among all operations on flash: ``W / (G + 2W - 1)``."""
        return self.write_amplification / self._operations_per_write

    @property
    def host_share(self) -> float:
        """The host's among all operations on flash: ``(G + 1) / (G + 2W - 1)``."""
        return 1.0 - 2 * (self.write_amplification - 1) / self._operations_per_write

    @property
    def _operations_per_write(self) -> float:
        """Operations on flash per write of the host; infinite where it only reads."""
        return self.reads_per_write + 2 * self.write_amplification - 1

    # -- what one operation takes -------------------------------------------------------------

    def plane_read_s(self, io_bytes: int) -> float:
        """Time of planes for a read of ``io_bytes``, in s."""
        return self._nand_reads(io_bytes) * self.sense_us * 1e-6

    def plane_write_s(self, io_bytes: int) -> float:
        """Time of planes for a write: its part of the NAND pages that are programmed whole."""
        return io_bytes / self.nand_page_bytes * self.program_us * 1e-6

    def channel_read_s(self, io_bytes: int) -> float:
        """Time of a channel for a read, in s."""
        command_s = self._nand_reads(io_bytes) * self.command_ns * 1e-9
        return command_s + io_bytes / self.channel_bytes_per_s

    def channel_write_s(self, io_bytes: int) -> float:
        """Time of a channel for a write: one command serves all writes that fill a NAND page."""
        command_s = io_bytes / self.nand_page_bytes * self.command_ns * 1e-9
        return command_s + io_bytes / self.channel_bytes_per_s

    def _nand_reads(self, io_bytes: int) -> int:
        """NAND pages that an aligned I/O covers."""
        return -(-io_bytes // self.nand_page_bytes)

    # -- the paper's peak ---------------------------------------------------------------------

    def die_rate(self, io_bytes: int) -> float:
        """Operations of one die per second, as the paper counts them."""
        reads = self.read_share / self.plane_read_s(io_bytes)
        writes = self.write_share / self.plane_write_s(io_bytes)
        return self.planes_per_die * (reads + writes)

    def channel_rate(self, io_bytes: int) -> float:
        """Operations of one channel per second, as the paper counts them."""
        reads = self.read_share / self.channel_read_s(io_bytes)
        return reads + self.write_share / self.channel_write_s(io_bytes)

    def link_rate(self, io_bytes: int) -> float:
        """The host's operations that the link carries per second."""
        return self.link_bytes_per_s / io_bytes

    def peak_iops(self, io_bytes: int) -> float:
        """The paper's peak: the host's random reads plus writes of ``io_bytes`` per second.

        It averages the *rates* of reads and of writes, as if either kind had its own share of the
        servers' time; :meth:`capacity_iops` is lower, because servers that take the mix in order
        spend more of their time on the slower kind.

        Raises:
            SettingsError: ``io_bytes`` is no multiple of 512 up to 1 GiB.
        """
        _check_io_bytes(io_bytes)
        dies = self.dies_per_channel * self.die_rate(io_bytes)
        flash = self.channels * min(dies, self.channel_rate(io_bytes))
        return min(self.host_share * flash, self.link_rate(io_bytes))

    def capacity_iops(self, io_bytes: int) -> float:
        """What servers reach that take the mix in order: the smallest stage's servers / E[S].

        It averages the *times* of reads and of writes (the utilisation law of queueing theory),
        where the paper's peak averages their rates: the harmonic mean, not the arithmetic one.
        The two are equal where the host only reads.

        Raises:
            SettingsError: as for :meth:`peak_iops`.
        """
        _check_io_bytes(io_bytes)
        reads, writes = self.read_share, self.write_share
        plane_s = reads * self.plane_read_s(io_bytes) + writes * self.plane_write_s(io_bytes)
        channel_s = reads * self.channel_read_s(io_bytes) + writes * self.channel_write_s(io_bytes)
        flash = min(self.planes / plane_s, self.channels / channel_s)
        return min(self.host_share * flash, self.link_rate(io_bytes))

    def wait_p99_s(self, io_bytes: int, utilisation: float) -> float:
        """The paper's estimate of the 99th percentile of a read's wait and sense, in s.

        ``C / peak * rho / (2 (1 - rho)) * ln 100 + sense``: the mean wait of an M/D/1 queue before
        a channel, with an exponential tail. It knows no wait for a plane, so it is low where
        planes are busy or are being programmed.

        Args:
            io_bytes: as for :meth:`peak_iops`.
            utilisation: rho, the load as a share of the peak; 0 or more and below 1.

        Raises:
            SettingsError: an argument is out of range.
        """
        if not 0 <= utilisation < 1:
            raise SettingsError(f"utilisation is {utilisation}: it must be 0 or more and below 1")
        service_s = self.channels / self.peak_iops(io_bytes)
        mean_wait_s = service_s * utilisation / (2 * (1 - utilisation))
        return mean_wait_s * math.log(100) + self.sense_us * 1e-6


STORAGE_NEXT_SLC: Final = SsdModel(
    channels=20,
    dies_per_channel=4,
    planes_per_die=6,
    nand_page_bytes=4096,
    sense_us=5,
    program_us=50,
    command_ns=150,
    channel_bytes_per_s=3.6e9,
    link_bytes_per_s=64e9,
)
"""The paper's base case: a Storage-Next drive with SLC flash."""


def _check_io_bytes(io_bytes: int) -> None:
    if not SECTOR_BYTES <= io_bytes <= IO_BYTES_MAX or io_bytes % SECTOR_BYTES:
        raise SettingsError(
            f"io_bytes is {io_bytes}: it must be a multiple of {SECTOR_BYTES} "
            f"from {SECTOR_BYTES} to {IO_BYTES_MAX}"
        )
