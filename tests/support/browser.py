"""Headless Chromium for tests: what a page looks like, says on its console, and asks of the net."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT_S = 90
_FLAGS = (
    "--headless",
    "--no-sandbox",  # containers run as root, and pages of tests are our own
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    # Nobody listens there: whatever is asked of the network, nothing leaves this machine.
    "--proxy-server=http://127.0.0.1:9",
    "--proxy-bypass-list=<-loopback>",
    "--enable-logging=stderr",
    "--log-level=0",
    "--virtual-time-budget=20000",
)
_FRAME = """<!DOCTYPE html><meta charset="utf-8"><body style="margin: 0">
<iframe src="probed.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<pre id="report"></pre>
<script>
addEventListener("message", (event) => {{
  document.getElementById("report").textContent = event.data;
}});
</script>"""


class View(NamedTuple):
    """What one look at a page found.

    Attributes:
        report: what the probe sent.
        console: lines on the console.
        requests: URLs that the page asked of the network.
    """

    report: Any
    console: list[str]
    requests: list[str]


def find_chromium() -> str | None:
    """The path of the browser, None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def look(chromium: str, page: Path, width: int, probe: str, directory: Path) -> View:
    """Open ``page`` in a frame of ``width`` pixels, whatever the narrowest window may be.

    Args:
        chromium: the browser.
        page: the HTML file.
        width: of the frame, in pixels.
        probe: JavaScript that runs in the page, and calls ``report(value)`` once.
        directory: where the browser keeps its files; a new one for each look.
    """
    directory.mkdir()
    script = f"const report = (v) => parent.postMessage(JSON.stringify(v), '*');\n{probe}"
    text = page.read_text(encoding="utf-8")
    probed = text.replace("</body>", f"<script>(() => {{{script}}})();</script></body>")
    (directory / "probed.html").write_text(probed, encoding="utf-8")
    frame = directory / "frame.html"
    frame.write_text(_FRAME.format(width=width), encoding="utf-8")
    net_log = directory / "net.json"
    ended = _run(chromium, directory, f"--log-net-log={net_log}", "--dump-dom", frame.as_uri())
    found = re.search(r'<pre id="report">(.+?)</pre>', ended.stdout, re.DOTALL)
    assert found, f"the probe sent nothing:\n{ended.stderr}"
    console = re.findall(r"CONSOLE.*?\] (.*)", ended.stderr)
    return View(json.loads(unescape(found[1])), console, _requests(net_log))


def screenshot(chromium: str, page: Path, width: int, height: int, directory: Path) -> bytes:
    """A PNG of the top of a page."""
    directory.mkdir()
    target = directory / "page.png"
    size = f"--window-size={width},{height}"
    _run(chromium, directory, size, f"--screenshot={target}", page.as_uri())
    return target.read_bytes()


def _run(chromium: str, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    profile = f"--user-data-dir={directory / 'profile'}"
    return subprocess.run(
        [chromium, *_FLAGS, profile, *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env={**os.environ, "HOME": str(directory)},
    )


def _requests(net_log: Path) -> list[str]:
    """What pages asked for; the browser's own requests have no initiator that is an origin."""
    asked = (event.get("params", {}) for event in json.loads(net_log.read_text())["events"])
    return [
        one["url"]
        for one in asked
        if "url" in one and "initiator" in one and one["initiator"] != "not an origin"
    ]
