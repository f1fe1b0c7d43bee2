"""The demo: what cache and coalescing bring, on recorded reads, and the same reads on a GPU server.

    python examples/demo.py [TRACE…]

For each recorded sample, or each TRACE: a `kvtier serve` on loopback holds its objects; the trace
is replayed through that server with cache and coalescing off, then on; and both are simulated on an
H200 with four Gen5 drives and a remote server, and once more with a Storage-Next drive. Everything
is done by the command line, as a user would. build/demo/ then holds a JSON file per run and one
HTML page.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from kvtier.report.comparison import agreements, groups_of

HERE = Path(__file__).resolve().parent
TRACES = HERE.parent / "traces"
CONFIG = HERE / "demo.toml"
OUT = Path("build") / "demo"
KVTIER = [sys.executable, "-m", "kvtier"]


class Sample(NamedTuple):
    """A trace, and the requests of it that are active at once."""

    path: Path
    concurrency: int = 256


class Run(NamedTuple):
    """A run of every trace: how the settings of the demo are changed for it."""

    name: str
    mode: str
    changes: tuple[str, ...]


SAMPLES = (
    Sample(TRACES / "sample.parquet"),
    # 48 turns in all: more at once would be the whole trace in one wave.
    Sample(TRACES / "kv-sample.parquet", concurrency=8),
)
NOTHING = (
    "tiers.hbm.capacity=0",
    "tiers.dram.capacity=0",
    "tiers.nvme.capacity=0",
    "chain.coalesce=false",
)
GEN5 = ("tiers.nvme.model.preset=gen5-nvme", "tiers.nvme.model.devices=4")
STORAGE_NEXT = ("tiers.nvme.model.preset=storage-next",)
RUNS = (
    Run("off", "replay", NOTHING),
    Run("on", "replay", ()),
    Run("gen5-off", "simulate", NOTHING),
    Run("gen5-on", "simulate", GEN5),
    Run("storage-next", "simulate", STORAGE_NEXT),
)


def kvtier(*arguments: str, quiet: bool = False) -> None:
    """One command, as a user would type it."""
    out = subprocess.DEVNULL if quiet else None
    ended = subprocess.run([*KVTIER, *arguments], check=False, stdout=out)
    if ended.returncode:
        raise SystemExit(ended.returncode)


@contextmanager
def served_origin(root: Path) -> Iterator[str]:
    """A server in front of files under ``root``, for as long as the block runs; yields its URL."""
    root.mkdir(parents=True)
    # Not synced: what is removed at the end need not outlive a crash.
    store = ["--backend", "file", "--option", f"root={root}", "--option", "sync=false"]
    server = subprocess.Popen(
        [*KVTIER, "serve", *store, "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if "listening on " not in line:
            raise SystemExit(f"demo: the server did not start (exit code {server.wait()})")
        yield line.rsplit(maxsplit=1)[-1]
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(root)


def result_path(sample: Sample, one: Run) -> Path:
    return OUT / f"{sample.path.stem}-{one.name}.json"


def run(sample: Sample, one: Run, url: str) -> dict[str, Any]:
    """Run a trace once; the result is left in build/demo/ as well."""
    out = result_path(sample, one)
    changes = (
        *one.changes,
        f"replay.concurrency={sample.concurrency}",
        f"origin.options.url={url}",
    )
    overrides = [argument for change in changes for argument in ("--set", change)]
    shape = ["--config", str(CONFIG), "--pages-per-block", "4"]
    named = ["--name", one.name, "--json", str(out)]
    kvtier(one.mode, str(sample.path), *shape, *named, *overrides, quiet=True)
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def check(results: Sequence[dict[str, Any]]) -> None:
    """Hold the runs of one trace to what the demo claims."""
    off, on, *_ = results
    for result in (off, on):
        checked, delivered = result["verify"]["checked_pages"], result["demand"]["delivered"]
        if result["verify"]["corrupt_pages"] or not checked == delivered == on["demand"]["reads"]:
            raise SystemExit(f"demo: {result['name']}: not every page was delivered and checked")
    (runs,) = groups_of(results)
    alike = agreements(runs)
    for one in alike:
        if one.differing:
            raise SystemExit(f"demo: {one.sentence}")
    if [len(one.runs) for one in alike] != [2, 3]:
        raise SystemExit("demo: a replay and its simulations were not run alike")


def claim(off: Mapping[str, Any], on: Mapping[str, Any]) -> Iterator[str]:
    """What cache and coalescing brought, in sentences."""
    parts = [("all reads", off, on)]
    if len(on["by_purpose"]) > 1:
        names = {"prefix": "prefix loads", "sparse": "sparse reads", "unstated": "others"}
        parts += [
            (names[purpose], off["by_purpose"][purpose], part)
            for purpose, part in on["by_purpose"].items()
        ]
    yield Path(on["trace"]["path"]).name
    for what, before, after in parts:
        many, few = before["origin"]["device_reads"], after["origin"]["device_reads"]
        times = f"{many / few:.1f} times fewer" if few else "none left"
        yield (
            f"  {what}: {before['demand']['reads']:,} pages asked for; device reads at the origin "
            f"{many:,} off, {few:,} on: {times}"
        )
    yield f"  same bytes: each run's {on['verify']['checked_pages']:,} pages were all compared"


def main() -> None:
    samples = tuple(Sample(Path(name)) for name in sys.argv[1:]) or SAMPLES
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    claims: list[str] = []
    for sample in samples:
        with served_origin(OUT / "origin") as url:
            results = [run(sample, one, url) for one in RUNS]
        check(results)
        claims += claim(*results[:2])
    (OUT / "nvme.pages").unlink(missing_ok=True)
    files = [str(result_path(sample, one)) for sample in samples for one in RUNS]
    kvtier("report", *files, "--html", str(OUT / "report.html"))
    print("\n".join(claims))
    print(f"\nresults: {OUT}/*.json; to look at: {OUT}/report.html")


if __name__ == "__main__":
    main()
