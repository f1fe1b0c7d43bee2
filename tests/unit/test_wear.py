"""What was written to a device, by pages, by capacity and by day."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from small_results import result
from small_results import tier as tier_of

from kvtier.chain import LevelCounters
from kvtier.report.schema import Tier
from kvtier.report.terminal import print_report
from kvtier.settings import TierSettings
from kvtier.wear import wear

PAGE = 4096
DRIVE = TierSettings("nvme", 1000 * PAGE)


def test_wear_is_what_was_written_by_pages_and_by_capacity() -> None:
    level = LevelCounters(device_writes=520, moved_pages=20, write_capped_pages=7)
    found = wear(
        DRIVE, level, page_bytes=PAGE, extra_bytes=30 * PAGE, caches=1, duration_s=43_200.0
    )
    assert found["written_bytes"] == 550 * PAGE
    assert found["write_amplification"] == pytest.approx(1.1)
    assert found["drive_writes_per_day"] == pytest.approx(1.1)
    assert found["write_capped_pages"] == 7
    assert set(found) <= set(Tier.__annotations__)


def test_several_caches_wear_several_capacities() -> None:
    level = LevelCounters(device_writes=500)
    found = wear(DRIVE, level, page_bytes=PAGE, extra_bytes=0, caches=5, duration_s=86_400.0)
    assert found["drive_writes_per_day"] == pytest.approx(0.1)


def test_memory_does_not_wear_and_nothing_is_no_amplification() -> None:
    memory = TierSettings("dram", 1000 * PAGE)
    found = wear(memory, LevelCounters(), page_bytes=PAGE, extra_bytes=0, caches=1, duration_s=1.0)
    assert (found["written_bytes"], found["write_amplification"]) == (0, None)
    assert found["drive_writes_per_day"] is None
    found = wear(DRIVE, LevelCounters(), page_bytes=PAGE, extra_bytes=0, caches=1, duration_s=0.0)
    assert found["drive_writes_per_day"] is None


def shown(changes: dict[str, object]) -> str:
    """The terminal report of a result with an nvme tier so changed."""
    values = result()
    values["tiers"].append(tier_of("nvme", 0, 0, **changes))
    text = StringIO()
    print_report(values, Console(file=text, width=160))
    return text.getvalue()


def test_the_report_has_a_line_for_a_drive_that_was_written() -> None:
    text = shown(
        {
            "written_bytes": 3 << 20,
            "write_amplification": 1.25,
            "drive_writes_per_day": 0.5,
            "write_capped_pages": 12,
        }
    )
    (line,) = [line for line in text.splitlines() if "nvme wear" in line]
    for part in ("3 MiB", "1.25", "0.50", "12"):
        assert part in line


def test_an_older_result_without_it_is_shown() -> None:
    assert "wear" not in shown({})
