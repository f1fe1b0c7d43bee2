"""Public figures of GPU-driven storage, beside what the emulator makes of the same machines.

    python examples/anchors.py [NAME…]

Each scenario is a TOML file of examples/anchors/, which says what was assumed, and a made-up load
of threads that read at random, each waiting for its last read before it knows the next address.
There are as many threads as keep the devices busy. None of this is a measurement: it shows what
the models say where somebody has published a number.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from kvtier.replay import simulate_trace
from kvtier.settings import load_settings
from kvtier.trace import RandomReads, write_random_reads
from kvtier.units import format_bytes, format_count

SCENARIOS = Path(__file__).resolve().parent / "anchors"


class Anchor(NamedTuple):
    """A published figure, and the run that stands for it.

    Attributes:
        name: of the row.
        public: what was published.
        scenario: the TOML file.
        load: the made-up reads.
        changes: of the scenario's settings.
    """

    name: str
    public: str
    scenario: str
    load: RandomReads
    changes: tuple[str, ...] = ()


SMALL = RandomReads(threads=20_000, hops=24, page_bytes=512)
DEPENDENT = RandomReads(threads=10_000, hops=24)
ONE_PREFIX = RandomReads(threads=4_000, hops=24)
BULK = RandomReads(threads=1_000, hops=6, extent_pages=64)

ANCHORS = (
    Anchor(
        "SCADA, 44 Gen6 drives, 512 B",
        "230 M IOPS",
        "scada",
        SMALL,
    ),
    Anchor(
        "the same, four GPUs with a cache each",
        "230 M IOPS",
        "scada-gpus",
        SMALL,
    ),
    Anchor(
        "the link of a B200, 512 B",
        "200 M IOPS fill it",
        "b200",
        SMALL,
    ),
    Anchor(
        "AiSIO, 16 drives, 512 B",
        "61.7 M IOPS",
        "aisio",
        SMALL,
    ),
    Anchor("AiSIO, 16 drives, 4 KiB", "44 to 45 GB/s", "aisio", DEPENDENT, ("page_bytes=4KiB",)),
    Anchor(
        "hits of 4 KiB in GPU memory",
        "150 M/s (SCADA)",
        "hits",
        RandomReads(threads=10_000, hops=96, object_pages=1 << 14),
    ),
    Anchor("misses of 4 KiB, with payload", "100 M/s processed (SCADA)", "misses", DEPENDENT),
    Anchor("dependent 4 KiB reads, issued by the GPU", "-", "issue", DEPENDENT),
    Anchor(
        "dependent 4 KiB reads, issued by 4 host cores",
        "-",
        "issue",
        DEPENDENT,
        ("topology.issue.preset=host-core", "topology.issue.devices=4"),
    ),
    Anchor("bulk reads of 256 KiB, issued by the GPU", "-", "issue", BULK),
    Anchor(
        "bulk reads of 256 KiB, issued by 4 host cores",
        "-",
        "issue",
        BULK,
        ("topology.issue.preset=host-core", "topology.issue.devices=4"),
    ),
    Anchor(
        "GNN-like: half of the reads are of popular nodes",
        "45 M IOPS (SCADA)",
        "gnn",
        RandomReads(
            threads=20_000,
            hops=24,
            page_bytes=512,
            popular_share=0.5,
            popular_pages=1 << 15,
        ),
    ),
    Anchor("S3 standard, one prefix, 4 KiB", "5,500 GET/s", "s3", ONE_PREFIX),
)


def quiet(*_: object) -> None:
    """No progress, no notices."""


def run(anchor: Anchor, directory: Path) -> tuple[str, ...]:
    """One row: what was published, and what the model says."""
    trace = directory / "load.parquet"
    write_random_reads(trace, anchor.load)
    settings = load_settings(SCENARIOS / f"{anchor.scenario}.toml", anchor.changes)
    result = simulate_trace(trace, settings, limit=None, progress=quiet, notify=quiet)
    demand = result["demand"]
    rate = demand["bytes"] / result["duration_s"]
    return (
        anchor.name,
        anchor.public,
        f"{format_count(demand['iops'])} of {format_bytes(settings.page_bytes)}",
        f"{rate / 1e9:.1f} GB/s",
        f"{result['bottleneck']} {result['utilisation'][result['bottleneck']]:.0%}",
    )


def main(names: Sequence[str]) -> None:
    chosen = [anchor for anchor in ANCHORS if not names or anchor.scenario in names]
    if not chosen:
        raise SystemExit(f"anchors: there are {', '.join(sorted({a.scenario for a in ANCHORS}))}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("load", "published", "modelled IOPS", "modelled bytes", "bottleneck"):
        table.add_column(title)
    with tempfile.TemporaryDirectory(prefix="kvtier-anchors-") as directory:
        for anchor in chosen:
            table.add_row(*run(anchor, Path(directory)))
    console = Console(width=120)
    console.print(table)
    console.print(
        "Every rate is modelled, every load made up; examples/anchors/ has the assumptions."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
