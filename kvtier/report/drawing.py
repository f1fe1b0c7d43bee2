"""What every plot is drawn with: its axes, its layout, and what colour means what.

A colour always means a level, or what else became of a read, and is the same in every plot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kvtier.report.comparison import Run

Figure = dict[str, Any]

BAR_PX: Final = 26
AXES_PX: Final = 76
"""Height of a bar with its gap, and of what stands below all of them."""

_COLOURS: Final[Mapping[str, str]] = {
    "all": "#8e8e96",
    "demand reads": "#8e8e96",
    "unique reads": "#b9b9c0",
    "folded": "#8e8e96",
    "joined": "#b9b9c0",
    "hbm": "#3f7fbf",
    "dram": "#45a088",
    "nvme": "#dfa32c",
    "another level": "#a05a9c",
    "origin": "#c9543c",
    "failed": "#7b3294",
    "absent": "#5a5a62",
}
"""In the order in which a read meets them."""
_OTHER: Final = "another level"
DEVICE_READS: Final = " device reads"
_NAME_LENGTH: Final = 22


class Key(NamedTuple):
    """One entry of a plot's key: a coloured mark and what it stands for."""

    mark: str
    colour: str
    label: str


class Plot(NamedTuple):
    """One plot, as a figure for Plotly.

    Attributes:
        title: what it shows.
        runs: the runs that it shows.
        reading: what it says, in a sentence or two.
        keys: what its marks stand for.
        data, layout: the figure.
    """

    title: str
    runs: tuple[Run, ...]
    reading: str
    keys: tuple[Key, ...]
    data: list[Figure]
    layout: Figure

    @property
    def figure(self) -> Figure:
        return {"data": self.data, "layout": self.layout}


def axis_of(title: str, **more: Any) -> Figure:
    """An axis of numbers, its unit in its title."""
    title_of = {"text": title, "standoff": 10}
    return {"title": title_of, "automargin": True, "ticklabelstandoff": 5, **more}


def categories_axis(names: Sequence[str]) -> Figure:
    """A vertical axis of names, the first on top; long ones are cut."""
    short = [n if len(n) <= _NAME_LENGTH else f"{n[: _NAME_LENGTH - 1]}…" for n in names]
    return {
        "type": "category",
        "categoryarray": list(names),
        "categoryorder": "array",
        "range": [len(names) - 0.5, -0.5],
        "tickvals": list(names),
        "ticktext": [plain(name) for name in short],
        "automargin": True,
        "showgrid": False,
        "ticklabelstandoff": 6,
    }


def layout_of(height: int, xaxis: Figure, yaxis: Figure) -> Figure:
    """A layout of so many pixels; its colours of text and lines are the page's."""
    return {
        "height": height,
        "xaxis": xaxis,
        "yaxis": yaxis,
        "showlegend": False,
        "hovermode": "closest",
        "bargap": 0.25,
        "margin": {"l": 10, "r": 16, "t": 6, "b": 10},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "dragmode": False,
    }


def keys_of(names: Iterable[str]) -> tuple[Key, ...]:
    """The key of a plot in which each name has its colour."""
    return tuple(Key("■", colour_of(name), name) for name in names)


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once, in the order of the colours."""
    order = list(_COLOURS)
    distinct = dict.fromkeys(names)
    return sorted(distinct, key=lambda name: order.index(_known(name)))


def _known(name: str) -> str:
    name = name.removesuffix(DEVICE_READS)
    return name if name in _COLOURS else _OTHER


def colour_of(name: str) -> str:
    return _COLOURS[_known(name)]


def plain(text: str) -> str:
    """Text that Plotly shows as it is: it takes some HTML tags and entities for markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
