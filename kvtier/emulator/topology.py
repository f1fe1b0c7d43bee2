"""A machine as a graph: which links a page passes, and who else uses them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvtier.emulator.device import ModelledDevice
from kvtier.emulator.station import Route, Station
from kvtier.errors import SettingsError
from kvtier.settings import LinkSettings, TopologySettings
from kvtier.settings.gpus import gpus_of, issued_by, pairs_of, place_of


class Hop(NamedTuple):
    """One link of a way, in the direction in which it is passed."""

    link: str
    source: str
    target: str

    @property
    def name(self) -> str:
        return f"{self.link} ({self.source} to {self.target})"


class Topology:
    """Links as stations: one for each direction, shared by all routes that pass it.

    GPUs are given by their numbers.

    Args:
        settings: the graph.

    Raises:
        SettingsError: two links have one name.
    """

    def __init__(self, settings: TopologySettings) -> None:
        self._settings = settings
        self._neighbours = _neighbours(settings.links)
        self._models = {link.name: link.model for link in settings.links}
        self._links: dict[str, Station] = {}
        self._gpus = gpus_of(settings)
        self._issues = _issues(settings)

    @property
    def stations(self) -> Mapping[str, Station]:
        """By name: every direction of a link that some route passes, and what issues."""
        return {**dict(self._issues), **self._links}

    def way(self, level: str, *, is_device: bool, gpu: int = 0) -> list[Hop]:
        """The links from a level to a GPU, nearest first.

        Args:
            level: its name.
            is_device: a drive or the origin, whose pages may have to go through the host.
            gpu: which one.

        Raises:
            SettingsError: the level is placed at no part, or there is no way.
        """
        settings = self._settings
        target = self._gpus[gpu]
        place = place_of(settings, level, gpu)
        if is_device and settings.route == "host" and place != settings.host:
            to_host = self._shortest(level, place, settings.host)
            return to_host + self._shortest(level, settings.host, target)
        return self._shortest(level, place, target)

    def route(self, level: str, device: Station, *, is_device: bool, gpu: int = 0) -> Route:
        """What pages pass between a level's own device and a GPU; arguments as of :meth:`way`."""
        issue = (self._issues[gpu][1],) if self._issues and is_device else ()
        way = self.way(level, is_device=is_device, gpu=gpu)
        back = [Hop(hop.link, hop.target, hop.source) for hop in reversed(way)]
        return Route(
            reads=(*issue, device, *map(self._station, way)),
            writes=(*issue, *map(self._station, back), device),
        )

    def _station(self, hop: Hop) -> Station:
        if hop.name not in self._links:
            self._links[hop.name] = ModelledDevice(self._models[hop.link])
        return self._links[hop.name]

    def _shortest(self, level: str, source: str, target: str) -> list[Hop]:
        """The way of fewest links; of equals, that of the links named first."""
        for part in (source, target):
            if part not in self._neighbours and source != target:
                raise SettingsError(
                    f"topology.links: {level} needs a way from {source} to {target}, and no link "
                    f"ends at {part}: there are {', '.join(self._neighbours) or 'no parts'}"
                )
        came_by: dict[str, Hop] = {}
        queue = deque([source])
        while queue and target not in came_by:
            for hop in self._neighbours.get(queue.popleft(), ()):
                if hop.target != source and hop.target not in came_by:
                    came_by[hop.target] = hop
                    queue.append(hop.target)
        if source != target and target not in came_by:
            raise SettingsError(
                f"topology.links: there is no way from {source}, where {level} is, to {target}: "
                "add the links that are missing"
            )
        way: list[Hop] = []
        part = target
        while part != source:
            way.append(came_by[part])
            part = came_by[part].source
        return way[::-1]


def _neighbours(links: Sequence[LinkSettings]) -> dict[str, list[Hop]]:
    """The hops that leave each part."""
    neighbours: dict[str, list[Hop]] = {}
    seen: set[str] = set()
    for link in links:
        if link.name in seen:
            raise SettingsError(f"topology.links: there are two links named {link.name}")
        seen.add(link.name)
        for one, other in pairs_of(link):
            neighbours.setdefault(one, []).append(Hop(link.name, one, other))
            neighbours.setdefault(other, []).append(Hop(link.name, other, one))
    return neighbours


def _issues(settings: TopologySettings) -> list[tuple[str, Station]]:
    """What issues the operations of each GPU, with its name; none where there is no limit."""
    if settings.issue is None:
        return []
    gpus = gpus_of(settings)
    if len(gpus) == 1 or issued_by(settings) == "host":
        return [("issue", ModelledDevice(settings.issue))] * len(gpus)
    return [(f"issue ({gpu})", ModelledDevice(settings.issue)) for gpu in gpus]
