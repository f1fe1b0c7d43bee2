"""The whole of ``kvtier size``: a trace and targets in, the cheapest configuration out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvtier.errors import KvtierError, SettingsError, TraceError
from kvtier.replay.workload import check_simulation, load_workload
from kvtier.settings import gpus_of
from kvtier.sizing.grid import Grid, Scale, build_grid, describe, sizes_of
from kvtier.sizing.result import to_result
from kvtier.sizing.search import Search
from kvtier.sizing.targets import Metrics, Target
from kvtier.sizing.task import SizingTask
from kvtier.sizing.trials import Trials
from kvtier.trace import inspect_trace

Progress = Callable[[int, int | None], None]
Notify = Callable[[str], None]


def size_trace(task: SizingTask, *, progress: Progress, notify: Notify) -> Mapping[str, Any]:
    """Find the cheapest capacities with which a trace meets its targets, in virtual time.

    Args:
        task: what to size.
        progress: called with simulations done, and how many there may be.
        notify: called with one line on what each simulation will take.

    Returns:
        The result (docs/sizing.md). After Ctrl-C it is the cheapest found so far.

    Raises:
        SettingsError: the settings, a target or a bound cannot be used.
        TraceError: the trace is broken, or reads nothing.
        KvtierError: nothing meets the targets, or nothing within the budget.
        KeyboardInterrupt: Ctrl-C before anything was found.
    """
    _check_task(task)
    workload = load_workload(task.path, task.settings, task.limit, scaled=False)
    check_simulation(workload)
    scale = Scale(max(1, workload.pages_per_block), max(1, workload.full_pages_per_block))
    footprint_bytes = scale.full(workload.unique_pages * task.settings.page_bytes)
    if not footprint_bytes:
        raise TraceError(f"{task.path}: it touches no page, so there is nothing to size")
    grid = _grid_of(task, scale, footprint_bytes)
    recorded_s = inspect_trace(task.path, task.limit)["duration_s"]
    notify(f"each of up to {task.budget} simulations: {workload.summary(task.settings)}")
    trials = Trials(task, grid, scale, recorded_s)
    search = Search(grid.steps, exhaustive=task.exhaustive)
    ended = _drive(search, trials, progress)
    if search.answer is None:
        if ended == "interrupted":
            raise KeyboardInterrupt
        raise KvtierError(_nothing_meets(task, grid, trials.metrics, ended))
    return to_result(trials, search, ended, footprint_bytes)


def _drive(search: Search, trials: Trials, progress: Progress) -> str:
    """Simulate what the search names; returns why it ended: settled, budget, interrupted."""
    budget = trials.task.budget
    while (number := search.next()) is not None:
        left = budget - len(trials.metrics)
        if left == 0:
            return "budget"
        if search.answer is None and not trials.task.exhaustive and left <= len(search.largest):
            # It may be that nothing meets the targets: what is left of the budget shows whether.
            number = search.largest[-1]
        missed = trials.simulate(number)
        if missed is None:
            return "interrupted"
        search.tell(number, meets=not missed)
        progress(len(trials.metrics), budget)
    return "settled"


def _check_task(task: SizingTask) -> None:
    settings = task.settings
    if len(gpus_of(settings.topology)) > 1:
        raise SettingsError("topology.gpus: the tiers of one GPU are sized; leave this out")
    if not settings.tiers:
        raise SettingsError("the settings have no tier, so there is nothing to size: give one")
    if not task.targets:
        raise SettingsError("no target is given: e.g. --target hit_rate=0.5")
    names = [target.name for target in task.targets]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"--target {name} is given twice: leave the weaker one out")
    if settings.origin is None:
        raise SettingsError(
            "the settings have no [origin], and without one requests ask only for what the tiers "
            "still hold, so configurations cannot be compared: add one"
        )


def _grid_of(task: SizingTask, scale: Scale, footprint_bytes: int) -> Grid:
    page_bytes = task.settings.page_bytes
    sizes: dict[str, list[int]] = {
        tier.name: sizes_of(
            tier.name,
            footprint_bytes,
            scale.full(tier.ways * page_bytes),
            task.most_bytes.get(tier.name),
        )
        for tier in task.settings.tiers
    }
    if not any(sizes.values()):
        raise SettingsError("--max leaves every tier out, so there is nothing to size")
    return build_grid(sizes, task.prices)


def _nothing_meets(task: SizingTask, grid: Grid, tried: Mapping[int, Metrics], ended: str) -> str:
    """One line: what was wanted, and which configuration came nearest, and by how much."""
    wanted = " and ".join(map(str, task.targets))
    bests = _bests(task.targets, grid, tried)
    if ended == "settled":
        advice = "lower the target or raise --max" if task.most_bytes else "lower the target"
        return f"no configuration within the bounds meets {wanted}: {advice}. {bests}"
    advice = "raise --budget"
    if len(grid) - 1 in tried:  # the dearest: every tier at its largest
        advice = "the largest misses too, so lower the target, or raise --budget for the others"
    return (
        f"nothing met {wanted} within {len(tried)} simulations of {len(grid)} configurations: "
        f"{advice}. {bests}"
    )


def _bests(targets: Sequence[Target], grid: Grid, tried: Mapping[int, Metrics]) -> str:
    return "; ".join(_best(target, grid, tried) for target in targets)


def _best(target: Target, grid: Grid, tried: Mapping[int, Metrics]) -> str:
    measured = ((number, metrics[target.name]) for number, metrics in tried.items())
    values = {number: value for number, value in measured if value is not None}
    if not values:
        return f"{target.name} could not be measured"
    best = (max if target.metric.at_least else min)(values.values())
    # Of equal values, the cheapest configuration.
    number = min(number for number, value in values.items() if value == best)
    miss = target.show(abs(best - target.bound))
    distance = f" ({miss} {'short' if target.metric.at_least else 'over'})"
    return (
        f"at best, {target.name} was {target.show(best)}"
        f"{'' if target.is_met(best) else distance}, with {describe(grid.capacities(number))}"
    )
