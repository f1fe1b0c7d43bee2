"""The result of a sizing as the mapping of docs/sizing.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Final

from kvtier.environment import describe_environment
from kvtier.settings import DeviceModel, default_model
from kvtier.sizing.economics import BreakEven, between
from kvtier.sizing.grid import Scale
from kvtier.sizing.prices import Price
from kvtier.sizing.search import Search
from kvtier.sizing.trials import Trials

SCHEMA_VERSION: Final = 1
CHEAPER_SHOWN: Final = 5


def to_result(trials: Trials, search: Search, ended: str, footprint_bytes: int) -> dict[str, Any]:
    """What a search found.

    Args:
        trials: what was simulated.
        search: knows the answer.
        ended: why the search ended: settled, budget or interrupted.
        footprint_bytes: what the trace touches at the full geometry; the origin holds it.
    """
    assert search.answer is not None
    answer, task, run = search.answer, trials.task, trials.result
    metrics = trials.metrics[answer]
    span_s, source = trials.pace(run)
    return {
        "schema_version": SCHEMA_VERSION,
        "mode": "size",
        "complete": ended != "interrupted",
        "trace": run["trace"],
        "environment": describe_environment(),
        "seed": task.settings.seed,
        "scale": trials.scale.factor,
        "targets": [
            {
                "name": target.name,
                "bound": target.bound,
                "at_least": target.metric.at_least,
                "value": metrics[target.name],
                "meaning": target.metric.meaning,
            }
            for target in task.targets
        ],
        "search": {
            "configurations": len(trials.grid),
            "simulated": len(trials.metrics),
            "budget": task.budget,
            "ended": ended,
            "exhaustive": task.exhaustive,
            "cheaper_not_simulated": search.cheaper_untried,
            "surprises": search.surprises,
        },
        "answer": {
            "dollars": float(trials.grid.dollars[answer]),
            "metrics": metrics,
            "levels": list(_levels(trials, answer, footprint_bytes)),
            "settings": _assignments(trials, answer),
            "bottleneck": run["bottleneck"],
        },
        "break_even": [asdict(one) for one in _break_evens(trials, answer)],
        "cheaper": [_candidate(trials, number) for number in _cheaper(trials, answer)],
        "pace": {"span_s": span_s, "source": source},
        "prices": {level: asdict(price) for level, price in task.prices.items()},
        "models": run["models"],
    }


def _levels(trials: Trials, answer: int, footprint_bytes: int) -> Iterator[dict[str, Any]]:
    """The tiers that there are, and the origin."""
    run, prices, scale = trials.result, trials.task.prices, trials.scale
    capacities = trials.grid.capacities(answer)
    wears = trials.wears(answer, run)
    for tier in run["tiers"]:
        name = tier["name"]
        worn = wears[name]
        yield {
            **_priced(name, prices[name], capacities[name], scale),
            "hit_rate": tier["hit_rate"],
            "hits": tier["hits"],
            "hits_per_s": _per_s(tier["hits"], run["duration_s"]),
            "wear": None if worn is None else asdict(worn),
        }
    origin = run["origin"]
    yield {
        **_priced("origin", prices["origin"], footprint_bytes, scale),
        "hit_rate": None,
        "hits": origin["hits"],
        "hits_per_s": _per_s(origin["hits"], run["duration_s"]),
        "wear": None,
    }


def _priced(name: str, price: Price, full_bytes: int, scale: Scale) -> dict[str, Any]:
    return {
        "name": name,
        "simulated_bytes": scale.simulated(full_bytes),
        "full_bytes": full_bytes,
        "devices": full_bytes / price.device_bytes,
        "dollars": price.dollars(full_bytes),
    }


def _assignments(trials: Trials, answer: int) -> list[str]:
    """What ``--set`` takes to simulate the answer again."""
    capacities = [
        f"tiers.{name}.capacity={trials.scale.simulated(size)}"
        for name, size in trials.grid.capacities(answer).items()
    ]
    if not trials.result["trace"]["scaled"]:
        return capacities
    return [*capacities, f"replay.pages_per_block={trials.scale.pages}"]


def _break_evens(trials: Trials, answer: int) -> Iterator[BreakEven]:
    """Between each level and the next: of all that there is to choose from, and of the answer."""
    settings, prices = trials.task.settings, trials.task.prices
    assert settings.origin is not None
    models: dict[str, DeviceModel] = {
        tier.name: tier.model or default_model(tier.name) for tier in settings.tiers
    }
    models["origin"] = settings.origin.model or default_model("origin")
    capacities = trials.grid.capacities(answer)
    there = [*(name for name, size in capacities.items() if size), "origin"]
    for upper, lower in dict.fromkeys([*pairwise(models), *pairwise(there)]):
        yield between(
            (upper, prices[upper]), (lower, prices[lower]), models[lower], settings.page_bytes
        )


def _cheaper(trials: Trials, answer: int) -> list[int]:
    """The dearest of those below the answer that were simulated."""
    below = (number for number in trials.metrics if number < answer)
    return sorted(below, reverse=True)[:CHEAPER_SHOWN]


def _candidate(trials: Trials, number: int) -> dict[str, Any]:
    return {
        "dollars": float(trials.grid.dollars[number]),
        "full_bytes": trials.grid.capacities(number),
        "metrics": trials.metrics[number],
        "missed": [target.name for target in trials.missed(number)],
    }


def _per_s(count: int, duration_s: float) -> float | None:
    return count / duration_s if duration_s else None
