"""The HTML page of real runs, in a real browser."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import small_results
from browser import View, find_chromium, look, screenshot

from kvtier.cli import main
from kvtier.report.page import render_page

pytestmark = pytest.mark.browser

TRACES = Path(__file__).resolve().parents[2] / "traces"
PROBE = Path(__file__).with_name("probe.js").read_text(encoding="utf-8")
SMALL = ("tiers.hbm.capacity=512KiB", "tiers.dram.capacity=2MiB", "tiers.nvme.capacity=8MiB")
NO_CACHE = (
    *("tiers.hbm.capacity=0", "tiers.dram.capacity=0", "tiers.nvme.capacity=0"),
    "chain.coalesce=false",
)
RUNS = (
    ("off", "replay", NO_CACHE),
    ("on", "replay", SMALL),
    ("gen5 x 4", "simulate", (*SMALL, "tiers.nvme.model.preset=gen5-nvme")),
    ("storage-next", "simulate", (*SMALL, "tiers.nvme.model.preset=storage-next")),
)
REQUESTS = {"sample.parquet": 60, "kv-sample.parquet": 6}


@pytest.fixture(scope="module")
def chromium() -> str:
    found = find_chromium()
    if found is not None:
        return found
    reason = "there is no Chromium: install it, e.g. with apt-get install chromium"
    if os.environ.get("KVTIER_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Results of both recorded traces: four runs each, two on real devices and two modelled."""
    directory = tmp_path_factory.mktemp("results")
    written = []
    for trace, requests in REQUESTS.items():
        for name, mode, changes in RUNS:
            target = directory / f"{trace}-{name}.json"
            argv = [mode, str(TRACES / trace), "--limit", str(requests), "--name", name]
            for change in (*changes, "origin.backend=memory", "replay.series_interval=1 ms"):
                argv += ["--set", change]
            assert main([*argv, "--json", str(target)]) == 0
            written.append(target)
    return written


@pytest.fixture(scope="module")
def page(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("page") / "page.html"
    assert main(["report", *map(str, files), "--html", str(target)]) == 0
    return target


@pytest.fixture(scope="module")
def strained_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made results that leave plots and tables little room."""
    results = [small_results.result(), small_results.modelled(small_results.result())]
    results.append(small_results.older(small_results.result()))
    for result in results:
        result["name"] = f"<b>{result['mode']}</b> & a name that is much too long for any axis"
        result["trace"]["path"] = f"/{'long' * 30}/<i>{'trace' * 20}.parquet"
        result["trace"]["synthetic"] = ["arrivals: " + "spread evenly " * 20]
        result["environment"]["cpu"] = "processor" * 12
        result["demand"]["latency_us"] |= {"p50": 1e-3, "max": 99e9}
        for part in (result["demand"], result["coalescing"]):
            part |= {
                key: part[key] * 10**12 for key in ("reads", "unique", "folded") if key in part
            }
    results[1]["utilisation"] = dict.fromkeys(("hbm", "dram", "origin"), 1.0)
    target = tmp_path_factory.mktemp("strained") / "page.html"
    target.write_text(render_page(results), encoding="utf-8")
    return target


@pytest.fixture(scope="module", params=[1280, 400])
def view(
    request: pytest.FixtureRequest,
    chromium: str,
    page: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> View:
    """A look at the page, at the width of a desk and of a hand."""
    return _look(chromium, page, request.param, tmp_path_factory.mktemp("browser"))


def _look(chromium: str, page: Path, width: int, directory: Path) -> View:
    found = look(chromium, page, width, PROBE, directory / "look")
    assert found.report["width"] == width
    return found


def _assert_readable(view: View) -> None:
    """Nothing is cut off, and nothing is written over something else."""
    assert view.console == []
    for plot in view.report["plots"]:
        assert plot["outside"] == [], plot["id"]
        assert plot["overlapping"] == [], plot["id"]
    assert view.report["scrollWidth"] <= view.report["width"]
    assert view.report["wide"] == []
    assert view.report["overlapping"] == []


def test_the_page_works_offline_and_without_complaint(view: View) -> None:
    assert view.console == []
    assert view.requests == []


def test_every_plot_is_drawn(view: View) -> None:
    plots = view.report["plots"]
    assert len(plots) == view.report["figures"] >= 2 * 5
    for plot in plots:
        assert plot["traces"] > 0, plot
        assert plot["groups"] == plot["traces"], plot
        assert plot["marks"] >= plot["traces"], plot
        assert plot["titles"], plot
        assert plot["width"] > 300, plot


def test_nothing_is_cut_off_or_written_over(view: View) -> None:
    _assert_readable(view)


@pytest.mark.parametrize("width", [1280, 400])
def test_a_strained_page_can_be_read(
    width: int, chromium: str, strained_page: Path, tmp_path: Path
) -> None:
    found = _look(chromium, strained_page, width, tmp_path)
    _assert_readable(found)
    assert all(plot["groups"] == plot["traces"] > 0 for plot in found.report["plots"])


def _find(result: Any, key: str) -> Any:
    for name in key.split("."):
        result = result[int(name)] if isinstance(result, list) else result[name]
    return result


def test_every_number_is_that_of_the_json(view: View, files: list[Path]) -> None:
    results = [json.loads(file.read_text()) for file in files]
    cells = view.report["cells"]
    assert len(cells) > 1000
    for cell in cells:
        numbers = [_find(results[int(cell["run"])], key) for key in cell["key"].split(" / ")]
        expected = numbers[0] / numbers[1] if len(numbers) == 2 else numbers[0]
        assert json.loads(cell["value"]) == expected, cell
        assert cell["text"], cell
        assert cell["isVisible"], cell
    for number, _ in enumerate(files):
        keys = {cell["key"] for cell in cells if cell["run"] == str(number)}
        assert {"demand.reads", "demand.iops", "origin.device_reads", "seed"} <= keys


def test_results_can_be_taken_out_again(view: View, files: list[Path]) -> None:
    assert len(view.report["downloads"]) == len(files)
    assert all(link.startswith("blob:") for link in view.report["downloads"])


def test_the_page_is_not_blank(chromium: str, page: Path, tmp_path: Path) -> None:
    blank = tmp_path / "blank.html"
    blank.write_text("<!DOCTYPE html><title>blank</title>")
    shots = [screenshot(chromium, one, 1280, 3000, tmp_path / one.stem) for one in (blank, page)]
    assert len(shots[1]) > 5 * len(shots[0])


def test_the_probes_see_what_they_look_for(chromium: str, tmp_path: Path) -> None:
    """A page that complains, asks the network and writes text over text is caught at all three."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<!DOCTYPE html><html><body><main><img src="http://kvtier.invalid/x.png">'
        '<h3>one</h3><h3 style="margin-top: -40px; width: 600px">two</h3></main><script>'
        'console.warn("careful"); document.documentElement.dataset.drawn = 0;</script></body>'
    )
    found = look(chromium, bad, 400, PROBE, tmp_path / "browser")
    assert [line.partition(",")[0] for line in found.console] == ['"careful"']
    assert found.requests == ["http://kvtier.invalid/x.png"]
    assert found.report["overlapping"] == ["one / two"]
    assert found.report["wide"] == ["two"]
    assert found.report["scrollWidth"] > 400
