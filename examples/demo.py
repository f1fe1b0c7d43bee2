"""The demo: a recorded trace through every tier, on real devices and in virtual time.

    python examples/demo.py [TRACE]

It starts a `kvtier serve` on loopback in front of a file, replays the trace through GPU memory (or
its CPU twin), DRAM, NVMe and that server, simulates the same run in virtual time, and prints both
side by side. Results are written to build/demo/.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from kvtier.report.side_by_side import differing_decisions, print_side_by_side

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "demo.toml"
SAMPLE = HERE.parent / "traces" / "sample.parquet"
OUT = Path("build") / "demo"
KVTIER = [sys.executable, "-m", "kvtier"]


@contextmanager
def served_origin(root: Path) -> Iterator[str]:
    """A server in front of files under ``root``, for as long as the block runs; yields its URL."""
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


def run(mode: str, trace: Path, url: str) -> dict[str, Any]:
    """One run by the command line, as a user would start it."""
    out = OUT / f"{mode}.json"
    command = [mode, str(trace), "--config", str(CONFIG), "--json", str(out)]
    command += ["--pages-per-block", "4", "--set", f"origin.options.url={url}"]
    ended = subprocess.run([*KVTIER, *command], check=False, stdout=subprocess.DEVNULL)
    if ended.returncode:
        raise SystemExit(ended.returncode)
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def main() -> None:
    trace = Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLE
    root = OUT / "origin"
    shutil.rmtree(OUT, ignore_errors=True)
    root.mkdir(parents=True)
    try:
        with served_origin(root) as url:
            replayed = run("replay", trace, url)
            simulated = run("simulate", trace, url)
    finally:
        shutil.rmtree(root)
        (OUT / "nvme.pages").unlink(missing_ok=True)
    console = Console()
    print_side_by_side([replayed, simulated], console)
    differing = differing_decisions([replayed, simulated])
    if differing:
        raise SystemExit(f"demo: replay and simulate differ in {', '.join(differing)}")
    if replayed["verify"]["corrupt_pages"] or not replayed["verify"]["checked_pages"]:
        raise SystemExit("demo: the delivered bytes could not be verified")
    console.print(
        f"{replayed['verify']['checked_pages']:,} of the delivered pages were compared with what "
        "was stored: none differed"
    )
    console.print(f"results: {OUT}/replay.json, {OUT}/simulate.json")


if __name__ == "__main__":
    main()
