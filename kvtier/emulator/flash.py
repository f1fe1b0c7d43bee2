"""Flash drives in virtual time: planes, channels and links as servers, each with a FIFO queue.

A read takes the drive's link, then a channel, then a plane, and is done when the plane is. Its
bytes go the other way; but a read that waits long for its plane would then reach the channel after
reads that were submitted later, and its end could not be told at submission. Taken backwards,
every stage fans out into the next: each server is reached in the order of submission, exactly, and
a queue is one number, the time at which its server is free. An idle drive takes as long either way,
and servers carry as much; in a row of servers of constant service time no read even waits longer or
shorter (Friedman, "Reduction Methods for Tandem Queuing Systems", 1965). Only where many planes
share a channel do waits differ, by a few percent: the tests compare them with an event-by-event
simulation in the true order.

A write crosses the link into the drive's buffer. The bytes of writes gather there until they fill
a NAND page, which then takes a channel once and a plane for ``program_us``: planes program whole
pages, and a read that meets a program waits for all of it, which makes the tail of a mixed load.
The buffer holds as many NAND pages as the drive has planes. A write is done when its bytes are in
it, so writes wait for flash only when that many programs are under way.

Garbage collection moves ``write_amplification - 1`` times what the host writes. Its reads are like
the host's, but do not use the link; its writes fill NAND pages together with the host's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from kvtier.errors import LimitError, SettingsError
from kvtier.hashing import fmix64, seed_word, set_of
from kvtier.jit import jit, jit_inline
from kvtier.pages import I64, U64, check_page_bytes
from kvtier.rows import as_column
from kvtier.ssd import IO_BYTES_MAX, PLANES_MAX, SECTOR_BYTES, SsdModel

NOW_NS_MAX: Final = 1 << 62
"""146 years: ends must fit into an i64."""

_SPAN_NS: Final = 1 << 50
"""13 days. Times are kept in ps, because a sector crosses a fast link in less than 10 ns; they
count from a start that is moved after so long, so that an i64 holds them however late it is."""

_PARTS_PER_CALL: Final = 1 << 18
"""NAND pages that one compiled call works through: some ms, so that Ctrl-C is heard between."""

_PS_PER_NS: Final = 1000
_PS_PER_US: Final = 1_000_000
_PS_PER_S: Final = 1_000_000_000_000

# Columns of the tallies of a drive.
_HOST_WRITES: Final = 0  # parts of NAND pages
_HOST_WRITE_SECTORS: Final = 1
_GARBAGE_READS: Final = 2
_PROGRAMS: Final = 3
_SENSES: Final = 4
_CHANNEL_SECTORS: Final = 5
_LINK_SECTORS: Final = 6
_TALLIES: Final = 7

_ZERO: Final = np.uint64(0)
_ONE: Final = np.uint64(1)

# Reads of garbage and programs are hashed by their number; high bits tell them from addresses.
_GARBAGE: Final = np.uint64(1 << 63)
_PROGRAM: Final = np.uint64(3 << 62)


class Stages(NamedTuple):
    """A number for each stage of all drives together."""

    planes: int
    channels: int
    links: int


class FlashCounts(NamedTuple):
    """What was submitted so far, to all drives together.

    Attributes:
        reads: operations of the host.
        writes: operations of the host.
        garbage_reads: by garbage collection, each within one NAND page.
        programs: NAND pages written, for the host and by garbage collection.
    """

    reads: int
    writes: int
    garbage_reads: int
    programs: int


class _Drives(NamedTuple):
    """State of all drives, and the service times of each; times in ps.

    When a server is free, or a program ends, counts from a start that :class:`FlashQueues` keeps.

    A *place* in a drive is a fraction, as a u64 in units of 2**-64: multiplied by the number of
    channels it gives the channel, multiplied by the number of planes a plane of that channel.

    Attributes:
        planes: i64[drives, planes], when each is free.
        channels: i64[drives, channels], when each is free.
        links: i64[drives], when each is free.
        program_ends: i64[drives, planes], when the latest programs end: a ring.
        oldest: i64[drives], where the oldest program lies in it.
        tallies: i64[drives, 7], sums since the start.
        sense_ps: of a plane, per NAND page.
        program_ps: of a plane, per NAND page.
        command_ps: of a channel, per NAND page.
        channel_sector_ps: of a channel, per sector.
        link_sector_ps: of a link, per sector.
        nand_sectors: sectors of a NAND page.
        write_amplification: sectors written to flash per sector that the host writes.
        seed_word: XORed into a number before it is hashed.
    """

    planes: I64
    channels: I64
    links: I64
    program_ends: I64
    oldest: I64
    tallies: I64
    sense_ps: int
    program_ps: int
    command_ps: int
    channel_sector_ps: int
    link_sector_ps: int
    nand_sectors: int
    write_amplification: float
    seed_word: np.uint64


class FlashQueues:
    """One drive, or several alike over which a hash spreads the NAND pages.

    Attributes:
        model: of each drive.
        servers: how many of each stage there are in all drives together.
    """

    def __init__(self, model: SsdModel, drives: int = 1, seed: int = 1) -> None:
        """Idle drives at time 0, their compiled part ready.

        Raises:
            SettingsError: there are no drives, or more than ``PLANES_MAX`` planes.
        """
        drives_max = PLANES_MAX // model.planes
        if not 1 <= drives <= drives_max:
            raise SettingsError(
                f"drives is {drives}: it must be 1 to {drives_max}, "
                f"for each has {model.planes} planes"
            )
        self.model = model
        self.servers = Stages(drives * model.planes, drives * model.channels, drives)
        self._drives = _idle_drives(model, drives, seed)
        self._now_ns = 0
        self._start_ns = 0
        self._reads = 0
        self._writes = 0
        self._compile()

    @property
    def busy_ns(self) -> Stages:
        """Time for which all servers of a stage are booked so far, in ns.

        Divided by the servers and by the time at which the last operation is done, it is the
        utilisation.
        """
        drives = self._drives
        # Python's numbers: years of all planes together are more ps than an i64 holds.
        sums: list[int] = drives.tallies.sum(axis=0).tolist()
        senses, programs = sums[_SENSES], sums[_PROGRAMS]
        planes_ps = senses * drives.sense_ps + programs * drives.program_ps
        channels_ps = (senses + programs) * drives.command_ps
        channels_ps += sums[_CHANNEL_SECTORS] * drives.channel_sector_ps
        links_ps = sums[_LINK_SECTORS] * drives.link_sector_ps
        return Stages(planes_ps // _PS_PER_NS, channels_ps // _PS_PER_NS, links_ps // _PS_PER_NS)

    @property
    def counts(self) -> FlashCounts:
        sums = self._drives.tallies.sum(axis=0)
        return FlashCounts(
            self._reads, self._writes, int(sums[_GARBAGE_READS]), int(sums[_PROGRAMS])
        )

    def serve(
        self, now_ns: int, locations: U64, pages: I64, page_bytes: int, is_write: bool
    ) -> I64:
        """Submit operations that arrive together, in their order.

        An operation covers adjacent pages, and is cut where NAND pages end: each part goes to the
        drive and plane that a hash of its address gives, and the operation is done when the last
        part is.

        Args:
            now_ns: the present, not before the last call's.
            locations: u64[e], number of the first page of each operation. Any number is one:
                addresses wrap at 2**64 sectors, and it is harmless if two pages share a place.
            pages: i64[e], pages of each operation: at least 1, at most 1 GiB.
            page_bytes: bytes of a page.
            is_write: whether the operations write or read.

        Returns:
            i64[e], when each operation is done, in ns, rounded up.

        Raises:
            LimitError: ``now_ns`` is before the last call's, or after ``NOW_NS_MAX``.
            SettingsError: ``page_bytes`` cannot be a page size.
            ValueError: a column has the wrong dtype or length, or a number of pages is out of
                range. Nothing was submitted then.
        """
        if not self._now_ns <= now_ns <= NOW_NS_MAX:
            raise LimitError(
                f"drives cannot take operations at {now_ns} ns: "
                f"it must be {self._now_ns}, as at the last call, to {NOW_NS_MAX}"
            )
        page_sectors = check_page_bytes(page_bytes) // SECTOR_BYTES
        locations = as_column(locations, np.uint64, "locations")
        pages = as_column(pages, np.int64, "pages")
        sectors = page_sectors * _total_pages(pages, locations.size, IO_BYTES_MAX // page_bytes)
        self._now_ns = now_ns
        if now_ns - self._start_ns > _SPAN_NS:
            self._move_start(now_ns)
        if is_write:
            self._writes += pages.size
        else:
            self._reads += pages.size

        done_ns = np.empty(pages.size, np.int64)
        for first, last in self._call_spans(pages.size, sectors):
            _serve(
                self._drives,
                (now_ns - self._start_ns) * _PS_PER_NS,
                locations,
                pages,
                np.uint64(page_sectors),
                is_write,
                first,
                last,
                done_ns,
            )
        done_ns += self._start_ns
        return done_ns

    def _move_start(self, now_ns: int) -> None:
        """Count times from ``now_ns``; servers that were free before then are free at it."""
        passed_ps = min((now_ns - self._start_ns) * _PS_PER_NS, np.iinfo(np.int64).max)
        drives = self._drives
        for times_ps in (drives.planes, drives.channels, drives.links, drives.program_ends):
            np.maximum(times_ps, passed_ps, out=times_ps)
            np.subtract(times_ps, passed_ps, out=times_ps)
        self._start_ns = now_ns

    def _call_spans(self, operations: int, sectors: int) -> Iterator[tuple[int, int]]:
        """Cut operations into ranges (first, last) of about ``_PARTS_PER_CALL`` NAND pages."""
        parts = operations + sectors // self._drives.nand_sectors
        step = max(1, _PARTS_PER_CALL * operations // max(1, parts))
        for first in range(0, operations, step):
            yield first, min(first + step, operations)

    def _compile(self) -> None:
        """Serve nothing once, so that no operation waits for the compiler."""
        locations, pages = np.empty(0, np.uint64), np.empty(0, np.int64)
        _total_pages(pages, 0, 1)
        _serve(self._drives, 0, locations, pages, _ONE, False, 0, 0, pages)


def _idle_drives(model: SsdModel, drives: int, seed: int) -> _Drives:
    return _Drives(
        planes=np.zeros((drives, model.planes), np.int64),
        channels=np.zeros((drives, model.channels), np.int64),
        links=np.zeros(drives, np.int64),
        program_ends=np.zeros((drives, model.planes), np.int64),
        oldest=np.zeros(drives, np.int64),
        tallies=np.zeros((drives, _TALLIES), np.int64),
        sense_ps=round(model.sense_us * _PS_PER_US),
        program_ps=round(model.program_us * _PS_PER_US),
        command_ps=round(model.command_ns * _PS_PER_NS),
        channel_sector_ps=round(SECTOR_BYTES * _PS_PER_S / model.channel_bytes_per_s),
        link_sector_ps=round(SECTOR_BYTES * _PS_PER_S / model.link_bytes_per_s),
        nand_sectors=model.nand_page_bytes // SECTOR_BYTES,
        write_amplification=float(model.write_amplification),
        seed_word=np.uint64(seed_word(seed)),
    )


def _total_pages(pages: I64, operations: int, pages_max: int) -> int:
    """Pages of all operations; raises ValueError where a number of pages does not fit."""
    if pages.size != operations:
        raise ValueError(
            f"pages has {pages.size} rows and locations {operations}: they must be as many"
        )
    total = _sum_within(pages, pages_max)
    if total < 0:
        raise ValueError(
            f"operations have {pages.min()} to {pages.max()} pages: each must have 1 to "
            f"{pages_max}, which are 1 GiB"
        )
    return total


# -- compiled: times, counts and server numbers are i64, addresses and hashes u64 -----------------


@jit
def _sum_within(pages: I64, pages_max: int) -> int:
    """The sum of ``pages``, or -1 if one is not 1 to ``pages_max``."""
    total = 0
    for row in range(pages.size):
        if pages[row] < 1 or pages[row] > pages_max:
            return -1
        total += pages[row]
    return int(total)


@jit
def _serve(
    drives: _Drives,
    now_ps: int,
    locations: U64,
    pages: I64,
    page_sectors: np.uint64,
    is_write: bool,
    first: int,
    last: int,
    done_ns: I64,
) -> None:
    """Serve operations ``first`` to ``last - 1``."""
    nand_sectors = np.uint64(drives.nand_sectors)
    drive_count = np.uint64(drives.links.size)
    for row in range(first, last):
        sector = locations[row] * page_sectors
        left = np.uint64(pages[row]) * page_sectors
        done_ps = now_ps
        while left != _ZERO:
            nand_page = sector // nand_sectors
            part = min(left, (nand_page + _ONE) * nand_sectors - sector)
            sectors = int(np.int64(part))
            hashed = fmix64(nand_page ^ drives.seed_word)
            drive = int(np.int64(set_of(hashed, drive_count)))
            crossed_ps = _cross_link(drives, drive, now_ps, sectors)
            if is_write:
                end_ps = _write(drives, drive, crossed_ps, sectors)
            else:
                # What the multiplication leaves of the fraction is the place within the drive.
                end_ps = _read(drives, drive, hashed * drive_count, crossed_ps, sectors)
            done_ps = max(done_ps, end_ps)
            sector += part
            left -= part
        done_ns[row] = -(-done_ps // _PS_PER_NS)


@jit_inline
def _write(drives: _Drives, drive: int, at_ps: int, sectors: int) -> int:
    """Put a part into the buffer, with the garbage collection and programs that it brings.

    Returns when there is room for it.
    """
    tallies = drives.tallies
    room_ps = drives.program_ends[drive, drives.oldest[drive]]

    tallies[drive, _HOST_WRITES] += 1
    garbage = tallies[drive, _HOST_WRITES] * (drives.write_amplification - 1.0)
    while tallies[drive, _GARBAGE_READS] + 1 <= garbage:
        place = fmix64(np.uint64(tallies[drive, _GARBAGE_READS]) ^ _GARBAGE ^ drives.seed_word)
        _read(drives, drive, place, at_ps, sectors)
        tallies[drive, _GARBAGE_READS] += 1

    tallies[drive, _HOST_WRITE_SECTORS] += sectors
    filled = tallies[drive, _HOST_WRITE_SECTORS] * drives.write_amplification
    while (tallies[drive, _PROGRAMS] + 1) * drives.nand_sectors <= filled:
        _program(drives, drive, at_ps)
    return int(max(at_ps, room_ps))


@jit_inline
def _program(drives: _Drives, drive: int, at_ps: int) -> None:
    """Program the NAND page that the buffer has gathered."""
    tallies = drives.tallies
    place = fmix64(np.uint64(tallies[drive, _PROGRAMS]) ^ _PROGRAM ^ drives.seed_word)
    end_ps = _use_flash(drives, drive, place, at_ps, drives.nand_sectors, drives.program_ps)
    oldest = drives.oldest[drive]
    drives.program_ends[drive, oldest] = end_ps
    # Not a remainder: a division would take as long as all the rest.
    drives.oldest[drive] = oldest + 1 if oldest + 1 < drives.program_ends.shape[1] else 0
    tallies[drive, _PROGRAMS] += 1


@jit_inline
def _read(drives: _Drives, drive: int, place: np.uint64, at_ps: int, sectors: int) -> int:
    """Read a part of a NAND page; returns when it is done."""
    drives.tallies[drive, _SENSES] += 1
    return _use_flash(drives, drive, place, at_ps, sectors, drives.sense_ps)


@jit_inline
def _use_flash(
    drives: _Drives, drive: int, place: np.uint64, at_ps: int, sectors: int, plane_ps: int
) -> int:
    """Queue at the channel and at the plane of ``place``; returns when both are done."""
    channel = int(np.int64(set_of(place, np.uint64(drives.channels.shape[1]))))
    plane = int(np.int64(set_of(place, np.uint64(drives.planes.shape[1]))))
    channel_ps = drives.command_ps + sectors * drives.channel_sector_ps
    drives.tallies[drive, _CHANNEL_SECTORS] += sectors
    off_channel_ps = max(at_ps, drives.channels[drive, channel]) + channel_ps
    drives.channels[drive, channel] = off_channel_ps
    end_ps = max(off_channel_ps, drives.planes[drive, plane]) + plane_ps
    drives.planes[drive, plane] = end_ps
    return int(end_ps)


@jit_inline
def _cross_link(drives: _Drives, drive: int, at_ps: int, sectors: int) -> int:
    """Queue at the link of a drive; returns when the part is across."""
    link_ps = sectors * drives.link_sector_ps
    drives.tallies[drive, _LINK_SECTORS] += sectors
    crossed_ps = max(at_ps, drives.links[drive]) + link_ps
    drives.links[drive] = crossed_ps
    return int(crossed_ps)
