"""The page: every number is the result's, nothing of a result is taken for markup."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import plotly.graph_objects
import pytest
import small_results
from small_results import modelled

from kvtier.errors import SettingsError
from kvtier.report import page, plots
from kvtier.report.comparison import Run, groups_of
from kvtier.report.drawing import Plot
from kvtier.report.page import check_page, render_page
from kvtier.report.rows import find

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


class _Page(HTMLParser):
    """What a browser would make of a page, as far as these tests ask."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        elif data.strip():
            self.words.append(" ".join(data.split()))

    @property
    def cells(self) -> list[dict[str, str]]:
        return [
            {key: str(value) for key, value in one.items()}
            for one in self.attributes
            if "data-value" in one
        ]


@pytest.fixture
def result() -> dict[str, Any]:
    return small_results.result()


@pytest.fixture
def results(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Two runs that must agree, one of other settings, and one of another trace."""
    off = copy.deepcopy(result) | {"name": "off", "tiers": [], "by_purpose": {}}
    off["origin"]["hits"] = 1048
    other = copy.deepcopy(result)
    other["trace"]["path"] = "other.parquet"
    return [result, modelled(result), off, other]


def _value(result: dict[str, Any], key: str) -> Any:
    """The value at a key, or the quotient of the values at two."""
    numbers = [find(result, one) for one in key.split(" / ")]
    return numbers[0] if len(numbers) == 1 else numbers[0] / numbers[1]


def test_every_number_is_that_of_the_result(results: list[dict[str, Any]]) -> None:
    cells = _Page(render_page(results)).cells
    for cell in cells:
        value = _value(results[int(cell["data-run"])], cell["data-key"])
        assert json.loads(cell["data-value"]) == value, cell
    shown = {(cell["data-run"], cell["data-key"]) for cell in cells}
    assert len(shown) > 300
    for key in ("demand.iops", "tiers.1.hit_rate", "origin.device_reads", "duration_s"):
        assert ("0", key) in shown
    assert ("1", "models.2.latency_us") in shown
    assert ("3", "by_purpose.sparse.demand.latency_us.p999") in shown
    assert ("0", "by_purpose.prefix.demand.reads / by_purpose.prefix.origin.device_reads") in shown


def test_the_results_are_in_the_page_as_they_are(results: list[dict[str, Any]]) -> None:
    assert json.loads(_Page(render_page(results)).scripts[-3]) == results


def test_text_of_a_result_is_never_markup(results: list[dict[str, Any]]) -> None:
    harmless = _Page(render_page(results))
    for result in results:
        result["name"] = result["origin"]["name"] = ATTACK
        result["trace"]["path"] = f"{ATTACK}/{ATTACK}"
        result["trace"]["kind"] = ATTACK
        result["trace"]["synthetic"] = [ATTACK]
        result["environment"]["cpu"] = ATTACK
        for tier in result["tiers"]:
            tier["engine"] = ATTACK
        for model in result["models"] or ():
            model["source"] = model["preset"] = ATTACK
    attacked = _Page(render_page(results))
    assert "img" not in attacked.tags
    assert not any(key.startswith("on") for one in attacked.attributes for key in one)
    scripts = ["alert" in script for script in attacked.scripts]
    assert attacked.tags.count("script") <= harmless.tags.count("script")
    assert any(scripts)  # in the data, where it does nothing
    assert any(ATTACK in word for word in attacked.words)


def test_the_page_asks_no_network() -> None:
    text = render_page([small_results.result()])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'")
    assert "http" not in policy[1]
    parsed = _Page(text)
    assert not {"link", "img", "iframe", "object", "base"} & set(parsed.tags)
    assert not any("src" in one for one in parsed.attributes)


def test_the_page_says_what_was_not_measured(result: dict[str, Any]) -> None:
    result["complete"] = False
    result["trace"] |= {
        "scaled": True,
        "pages_per_block": 4,
        "full_pages_per_block": 512,
        "synthetic": ["arrivals: spread evenly"],
    }
    words = _Page(render_page([result, modelled(result)])).words
    for badge in (
        "measured",
        "modelled",
        "scaled: 4 of 512 pages per block",
        "synthetic: arrivals",
        "interrupted: measured until then",
    ):
        assert words.count(badge) >= 5, badge  # beside every block of numbers
    assert ": Synthetic: arrivals: spread evenly." in words
    assert ": 70 delivered pages were compared with what was stored: 0 differed." in words


def test_numbers_that_cannot_be_trusted_are_loud(result: dict[str, Any]) -> None:
    assert "Do not trust these numbers." not in _Page(render_page([result])).words
    result["coalescing"]["folded"] += 1
    result["verify"]["corrupt_pages"] = 3
    words = _Page(render_page([result])).words
    assert "Do not trust these numbers." in words
    assert "replay: not so: 1,200 reads = 1,100 unique + 101 folded" in words
    assert "replay: 3 of 70 checked pages had wrong bytes." in words


def test_what_an_older_version_lacks_is_left_out(result: dict[str, Any]) -> None:
    words = _Page(render_page([small_results.older(result)])).words
    assert "Where each read was served" in words
    assert "Hit rate of each tier over time" not in words
    assert "Assumptions: the modelled devices" not in words


def test_a_run_that_measured_nothing_has_a_page(result: dict[str, Any]) -> None:
    for part in (result["demand"], *result["tiers"], result["origin"]):
        part |= {"latency_us": small_results.NO_LATENCY, "iops": None}
    result["demand"] |= {"reads": 0, "unique": 0, "absent": 0, "delivered": 0, "bytes": 0}
    for tier in result["tiers"]:
        tier |= {"lookups": 0, "hits": 0, "hit_rate": None, "device_reads": 0}
    result["coalescing"] |= {"folded": 0, "joined": 0}
    result["origin"] |= {"hits": 0, "failures": 0, "device_reads": 0}
    empty = {"hbm": [], "dram": [], "origin": []}
    result["series"] |= {"t_s": [], "reads": [], "lookups": empty, "hits": empty}
    result["series"]["delivered"] = empty
    result["by_purpose"] = {}
    assert "Where each read was served" in _Page(render_page([result])).words


def _plots(results: list[dict[str, Any]]) -> list[Plot]:
    groups = [page.Group(0, runs) for runs in groups_of(results)]
    over_time = [plot for group in groups for one in group.over_time for plot in one]
    return [plot for group in groups for plot in group.summaries] + over_time


def test_plotly_knows_every_property_of_a_figure(results: list[dict[str, Any]]) -> None:
    drawn = _plots(results)
    assert len(drawn) >= 16
    for plot in drawn:
        plotly.graph_objects.Figure(plot.figure)  # refuses what it does not know


def test_every_plot_has_axes_with_titles_and_a_sentence(results: list[dict[str, Any]]) -> None:
    for plot in _plots(results):
        layout = plot.figure["layout"]
        value_axes = [layout[name] for name in ("xaxis", "yaxis")]
        titled = [one for one in value_axes if one.get("type") != "category"]
        assert titled
        assert all(one["title"]["text"] for one in titled)
        assert plot.reading.endswith(".")


def test_shares_of_a_run_fill_its_bar(results: list[dict[str, Any]]) -> None:
    for plot in _plots(results):
        if plot.title.startswith("Where"):
            bars: dict[str, float] = {}
            for trace in plot.figure["data"]:
                for name, share in zip(trace["y"], trace["x"], strict=True):
                    bars[name] = bars.get(name, 0) + share
            assert all(total == pytest.approx(100) for total in bars.values()), bars


def _run(result: dict[str, Any]) -> Run:
    return Run(0, "run", result)


def test_rates_over_time_are_those_of_each_interval(result: dict[str, Any]) -> None:
    rates, delivered = plots.hit_rates(_run(result)), plots.delivered(_run(result))
    assert rates is not None
    assert delivered is not None
    hbm, dram = rates.figure["data"]
    assert hbm["x"] == [0, 0.5, 1.5]
    assert hbm["y"] == [50, 50, 50]
    assert dram["y"] == [50, 50, None]  # no lookups, no rate
    assert [one["y"][1:] for one in delivered.figure["data"]] == [[1000, 50], [780, 0], [400, 50]]


def test_a_long_series_loses_no_read(result: dict[str, Any]) -> None:
    points = 5 * plots.POINTS_MAX + 3
    series = result["series"]
    series["t_s"] = [0.5 * (number + 1) for number in range(points)]
    series["delivered"] = {"hbm": list(range(points))}
    plot = plots.delivered(_run(result))
    assert plot is not None
    (trace,) = plot.figure["data"]
    times, rates = trace["x"], trace["y"][1:]
    assert len(rates) <= plots.POINTS_MAX
    lengths = [end - start for start, end in pairwise(times)]
    counts = [rate * length for rate, length in zip(rates, lengths, strict=True)]
    assert sum(counts) == pytest.approx(sum(range(points)))


def test_a_page_is_refused_early_without_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_page(tmp_path / "page.html")
    monkeypatch.setattr(page, "_NEEDED", ("jinja2", "no_such_package"))
    with pytest.raises(SettingsError, match=r"needs no_such_package: .*'kvtier\[report\]'"):
        check_page(tmp_path / "page.html")


def test_a_page_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="a page is a file"):
        check_page(Path("-"))
    with pytest.raises(SettingsError, match="there is no directory"):
        check_page(tmp_path / "none" / "page.html")
