"""A calibration as a mapping for JSON and tables, and as settings in TOML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any, Final

from kvtier.calibration.calibrating import Calibration
from kvtier.calibration.fitting import Fit
from kvtier.calibration.host import HostCost
from kvtier.calibration.load import Load
from kvtier.settings import DeviceModel, HostSettings
from kvtier.settings.keys import toml_key
from kvtier.units import format_bytes

_COMMENTS: Final = {
    "latency_s": "median of an idle device, beside what iops and bandwidth take",
    "iops": "operations served per second, latencies apart",
    "bytes_per_s": "of large reads",
    "tail_latency_s": "99th percentile of latency",
    "batch": "operations taken together: they pay one latency and are worked off in turn",
    "sustained_iops": "once the burst is used up",
    "burst": "operations beyond that after a pause",
    "refill_s": "between two steps of the throttle",
    "write_latency_s": "of writes, as above",
}

_HOST_COMMENTS: Final = {
    "batch_s": "of a batch of the chain, hits in the first memory included",
    "copy_s": "of any other copy between memories",
    "page_s": "of each page that is copied",
    "device_batch_s": "of operations given to a device together",
    "operation_s": "of each of them",
    "request_s": "of each batch of a request, in the drive of a trace in waves",
    "paced_request_s": "the same in the other drives",
    "wait_s": "of operations given to a device together, for threads to be woken",
    "operation_wait_s": "of each of them",
}


def to_mapping(calibration: Calibration) -> dict[str, Any]:
    """Everything that was found, as JSON: what was measured, the model, and how well it fits."""
    cost = calibration.host
    return {
        "device": calibration.device,
        "direct": calibration.direct,
        "engine": calibration.engine,
        "notes": list(calibration.notes),
        "finished": calibration.finished,
        "seconds": calibration.seconds,
        "size_bytes": calibration.size_bytes,
        "page_bytes": calibration.page_bytes,
        "model": _figures(calibration.model),
        "host": None if cost is None else {**asdict(cost.host), "error": round(cost.error, 3)},
        "host_rounds": [] if cost is None else [asdict(host) for host in cost.rounds],
        "origin": None if cost is None else _figures(cost.origin),
        "loads": [_row(fit) for fit in calibration.fits],
        "environment": calibration.environment,
    }


def to_toml(calibration: Calibration) -> str:
    """Settings for ``--config``: an ``nvme`` tier as large as the file, with the fitted model."""
    heading = [f"# {line}".rstrip() for line in to_text(calibration).splitlines()]
    return "\n".join((*heading, *_settings(calibration))) + "\n"


def to_text(calibration: Calibration) -> str:
    """What was measured, and what the model predicts beside it, as a table."""
    return "\n".join(_lines(calibration)) + "\n"


def describe_load(load: Load) -> str:
    """A load in words: ``read 4 KiB, depth 16``."""
    kind = {0.0: "read", 1.0: "write"}.get(load.write_share, f"{load.write_share:.0%} written")
    return f"{kind} {format_bytes(load.io_bytes)}, depth {load.depth}"


def _figures(model: DeviceModel) -> dict[str, Any]:
    return {name: value for name, value in asdict(model).items() if value is not None}


def _row(fit: Fit) -> dict[str, Any]:
    measured = fit.measured
    return {
        "load": describe_load(measured.load),
        "iops": round(measured.iops),
        "predicted_iops": round(fit.iops),
        "iops_error": round(fit.iops_error, 3),
        "p50_us": round(measured.latency_p50_s * 1e6, 1),
        "predicted_p50_us": round(fit.latency_p50_s * 1e6, 1),
        "p99_us": round(measured.latency_p99_s * 1e6, 1),
        "predicted_p99_us": round(fit.latency_p99_s * 1e6, 1),
        "p99_error": round(fit.p99_error, 3),
        "iops_spread": round(measured.iops_spread, 2),
        "p99_spread": round(measured.p99_spread, 2),
    }


def _lines(calibration: Calibration) -> Iterator[str]:
    environment = calibration.environment
    access = "O_DIRECT" if calibration.direct else "through the page cache"
    access += f", {calibration.engine}"
    yield f"Measured by kvtier {environment['kvtier']} calibrate, {calibration.finished}:"
    yield f"{calibration.device}, {format_bytes(calibration.size_bytes)} of a file, {access},"
    yield f"{environment['cpu']}, {environment['cores']} cores, {environment['kernel']}."
    for note in calibration.notes:
        yield f"NOTE: {note}."
    yield ""
    yield f"{'':28} {'IOPS':>10} {'modelled':>16}   {'p99':>10} {'modelled':>16}"
    for fit in calibration.fits:
        measured = fit.measured
        yield (
            f"{describe_load(measured.load):28} {measured.iops:10,.0f} {fit.iops:10,.0f}"
            f" {fit.iops_error:+5.0%}   {measured.latency_p99_s * 1e6:7,.0f} us"
            f" {fit.latency_p99_s * 1e6:7,.0f} us {fit.p99_error:+5.0%}"
        )
    yield ""
    cost = calibration.host
    if cost is None:
        yield "What the host's software takes was not measured."
        return
    host = cost.host
    yield (
        f"The host takes {host.batch_s * 1e6:.0f} us per batch, {host.copy_s * 1e6:.0f} us per "
        f"further copy, {host.page_s * 1e6:.2f} us per page copied,"
    )
    yield (
        f"{host.device_batch_s * 1e6:.0f} us per device batch and {host.operation_s * 1e6:.1f} us "
        f"per operation, which explains its time to {cost.error:.0%}. Operations wait "
        f"{host.wait_s * 1e6:.0f} us and {host.operation_wait_s * 1e6:.1f} us each for threads."
    )
    yield (
        f"Driving a trace takes {host.request_s * 1e6:.1f} us per batch of a request in waves, and "
        f"{host.paced_request_s * 1e6:.1f} us in other drives."
    )
    if cost.rounds:
        yield f"These are medians of {len(cost.rounds)} rounds; [host] has their spread."


def _settings(calibration: Calibration) -> Iterator[str]:
    yield ""
    yield f"page_bytes = {calibration.page_bytes}"
    yield ""
    yield "[tiers.nvme]"
    yield f"capacity = {calibration.size_bytes}  # of the file that was measured"
    yield ""
    yield from _table("tiers.nvme.model", calibration.model, _COMMENTS)
    if calibration.host is not None:
        yield ""
        yield from _table("host", calibration.host.host, _host_comments(calibration.host))
        yield ""
        yield "[origin]"
        yield 'backend = "file"  # files that the system has cached; change it to yours'
        yield ""
        yield from _table("origin.model", calibration.host.origin, {})
        return
    yield ""
    yield "[origin]"
    yield 'backend = "memory"  # it was not measured: change it to yours'


def _host_comments(cost: HostCost) -> dict[str, str]:
    """What each term is and, of several rounds, between what it was found."""
    if not cost.rounds:
        return _HOST_COMMENTS
    spreads = {}
    for name, comment in _HOST_COMMENTS.items():
        found = [1e6 * getattr(host, name) for host in cost.rounds]
        spread = f"{_decimal(min(found))} to {_decimal(max(found))} us in {len(found)} rounds"
        spreads[name] = f"{comment}; {spread}"
    return spreads


def _table(
    name: str, values: DeviceModel | HostSettings, comments: Mapping[str, str]
) -> Iterator[str]:
    """A table of the figures that there are."""
    yield f"[{name}]"
    for field in fields(values):
        value = getattr(values, field.name)
        if value is not None and field.name not in ("preset", "devices", "flash"):
            line = f"{toml_key(field.name)} = {_literal(field.name, value)}"
            comment = comments.get(field.name)
            yield f"{line}  # {comment}" if comment else line


def _literal(name: str, value: float) -> str:
    """A figure with the unit that its name asks for."""
    if name.endswith("bytes_per_s"):
        return f'"{_decimal(value / 1e6)} MB/s"'
    if name.endswith("_s"):
        return f'"{_decimal(value * 1e6)} us"'
    return f"{value:g}" if isinstance(value, int) else repr(value)


def _decimal(value: float) -> str:
    """Without an exponent, which settings do not read."""
    return f"{value:.9f}".rstrip("0").rstrip(".")
