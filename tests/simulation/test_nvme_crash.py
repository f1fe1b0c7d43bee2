"""Writers killed at random moments: what is found afterwards is right, and nearly all is found.

The short form runs with the suite; ``make soak`` runs the long one.
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from crash_writer import CAPACITY_PAGES, PAGE, content, opened

from kvtier import PageStatus
from kvtier.io.engine import WRITE_OPERATION_BYTES, writes_max
from kvtier.pages import U8, Bool
from kvtier.settings import TierSettings
from kvtier.tiers import NvmeTier

KILLS = int(os.environ.get("KVTIER_CRASH_KILLS", "6"))
LIFE_S = (0.05, 2.2)
SURE_AFTER_S = 1.0
KEPT_SHARE = 0.99

RECENT_PAGES = CAPACITY_PAGES // 2
"""So many pages that were written last must be there still; older ones may have made room."""


OPERATIONS_CUT_MAX = writes_max(TierSettings("nvme", PAGE).queue_depth)
"""Of writes that a kill can cut off: those under way."""


@dataclass
class Known:
    """What the writer said of an object: its last version that was written, and the next one.

    Attributes:
        version: 0: deleted; None: nothing was finished yet.
        pages: of that version.
        position: pages that were written to the log before it.
        done_s: when it was finished.
        begun: version and pages of a call that was not finished.
    """

    version: int | None = None
    pages: int = 0
    position: int = 0
    done_s: float = 0.0
    begun: tuple[int, int] | None = None


@dataclass
class Ledger:
    """Everything that writers said."""

    objects: dict[int, Known] = field(default_factory=dict)
    written_pages: int = 0

    def take(self, line: str) -> None:
        kind, key, *rest = line.split()
        known = self.objects.setdefault(int(key), Known())
        if kind == "start":
            known.begun = int(rest[0]), int(rest[1])
            return
        assert known.begun is not None
        known.version, known.pages = known.begun
        known.position, known.done_s, known.begun = self.written_pages, float(rest[0]), None
        self.written_pages += known.pages if known.version else 0


class Writers:
    """The process that forks writers."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._text = b""

    def line(self, until_s: float) -> str | None:
        """The next line, or None if there is none by then."""
        assert self._process.stdout is not None
        while b"\n" not in self._text:
            left_s = max(0.0, until_s - time.monotonic())
            if not select.select([self._process.stdout], [], [], left_s)[0]:
                return None
            more = os.read(self._process.stdout.fileno(), 1 << 16)
            assert more, "the writers' process has ended"
            self._text += more
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    def life(self, seed: int, first_key: int, life_s: float, ledger: Ledger) -> float:
        """Start a writer and kill it; returns when."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d %d\n" % (seed, first_key))
        self._process.stdin.flush()
        patience_s = time.monotonic() + 30
        pid = int((self.line(patience_s) or "").split()[1])
        end_s = time.monotonic() + life_s
        while (line := self.line(end_s)) is not None:
            ledger.take(line)
        os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        while (line := self.line(patience_s)) != "dead":
            assert line is not None
            ledger.take(line)
        return killed_s


@contextmanager
def writers(path: Path) -> Iterator[Writers]:
    script = Path(__file__).parents[1] / "support" / "crash_writer.py"
    command = [sys.executable, str(script), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        found = Writers(process)
        try:
            assert found.line(time.monotonic() + 60) == "ready"
            yield found
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.kill()


async def check(path: Path, ledger: Ledger, killed_s: float) -> tuple[int, int]:
    """Read everything back; pages that had to be there, and those of them that are."""
    expected_pages = found_pages = 0
    async with opened(path) as cache:
        for key, known in ledger.objects.items():
            objects = await cache.open([b"%d" % key])
            pages, good = int(objects.pages[0]), 0
            if pages >= 0:
                result = await cache.read(objects.page_ids())
                there = result.status == PageStatus.OK
                assert (result.status[~there] == PageStatus.ABSENT).all()
                version = version_of(key, known, result.pages, there)
                assert version is not None, f"object {key} of {pages} pages, {known}"
                good = int(np.count_nonzero(there))
            is_recent = ledger.written_pages - known.position < RECENT_PAGES
            is_sure = known.begun is None and known.done_s < killed_s - SURE_AFTER_S
            if known.version and is_recent and is_sure:
                expected_pages += known.pages
                found_pages += good
            if known.begun is not None:
                # Whether that call had its effect shows now, and is not to change any more.
                known.version, known.pages = (version, pages) if pages >= 0 else (0, 0)
                known.begun = None
            if not is_sure and good < known.pages:
                known.position = -RECENT_PAGES  # lost to this kill, and not again to the next ones
        (tier,) = cache.driver.tiers
        assert isinstance(tier, NvmeTier)
        # A segment leaves in several operations. Where the kill kept one from the drive, but not
        # the one with its metadata, checksums tell.
        assert tier.corrupt_pages <= OPERATIONS_CUT_MAX * WRITE_OPERATION_BYTES // PAGE
    return expected_pages, found_pages


def version_of(key: int, known: Known, pages: U8, there: Bool) -> int | None:
    """The version that all pages found are of, if it may be found; the newest of several."""
    allowed = [(known.version, known.pages)] if known.version else []
    if known.begun is not None and known.begun[0]:
        allowed.append(known.begun)
    for version, count in reversed(allowed):
        if count == len(pages) and (pages[there] == content(key, version, count)[there]).all():
            return version
    return None


@pytest.mark.timeout(120 + 10 * KILLS)
def test_killed_writers_leave_nothing_wrong_and_nearly_everything(tmp_path: Path) -> None:
    path = tmp_path / "log"
    rng = random.Random(1)
    ledger = Ledger()
    expected_pages = found_pages = 0
    with writers(path) as found:
        for kill in range(KILLS):
            first_key = 1 + max(ledger.objects, default=0)
            killed_s = found.life(kill, first_key, rng.uniform(*LIFE_S), ledger)
            expected, there = asyncio.run(check(path, ledger, killed_s))
            expected_pages += expected
            found_pages += there
    sys.stdout.write(f"{KILLS} kills: {found_pages} of {expected_pages} pages found\n")
    assert expected_pages > 1000
    assert found_pages >= KEPT_SHARE * expected_pages
