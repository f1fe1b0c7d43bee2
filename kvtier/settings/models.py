"""What must hold within the model of a device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Final

from kvtier.settings.keys import toml_key
from kvtier.settings.presets import flash_model
from kvtier.settings.problems import COUNT_MAX, Problem, given_outside, outside
from kvtier.settings.values import DeviceModel
from kvtier.ssd import PLANES_MAX
from kvtier.units import format_rate, format_seconds

TAIL_RATIO_MAX: Final = 1000
"""How much longer the 99th percentile of a latency may be than its median."""


def model_problems(prefix: str, model: DeviceModel) -> Iterator[Problem]:
    """Of the model at the dotted key ``prefix``."""
    yield from outside(f"{prefix}.latency", model.latency_s, 0, 3600, format_seconds)
    yield from outside(f"{prefix}.iops", model.iops, 1, 1e15)
    yield from outside(f"{prefix}.bandwidth", model.bytes_per_s, 1, 1e18, format_rate)
    yield from outside(f"{prefix}.devices", model.devices, 1, 1_000_000)
    yield from _flash_problems(prefix, model)
    yield from _tail_problems(prefix, model)
    yield from _throttle_problems(prefix, model)
    yield from given_outside(f"{prefix}.batch", model.batch, 1, COUNT_MAX)
    yield from given_outside(
        f"{prefix}.write_latency", model.write_latency_s, 0, 3600, format_seconds
    )
    yield from given_outside(f"{prefix}.write_iops", model.write_iops, 1, 1e15)
    yield from given_outside(
        f"{prefix}.write_bandwidth", model.write_bytes_per_s, 1, 1e18, format_rate
    )


def _flash_problems(prefix: str, model: DeviceModel) -> Iterator[Problem]:
    """A drive that is built of flash has its figures from there, and is told of no others."""
    if model.flash is None:
        return
    built = flash_model(model.flash)
    for field in fields(DeviceModel):
        if field.name in ("flash", "preset", "devices"):
            continue
        if getattr(model, field.name) != getattr(built, field.name):
            key = f"{prefix}.{toml_key(field.name)}"
            yield Problem(
                key,
                f"{key} is of no effect on a flash drive, which follows from how it is built: "
                f"leave it out, change {prefix}.flash, or give no flash",
            )
    drives_max = PLANES_MAX // model.flash.planes
    if model.devices > drives_max:
        yield Problem(
            f"{prefix}.devices",
            f"{prefix}.devices is {model.devices}: it must be 1 to {drives_max}, for each of these "
            f"flash drives has {model.flash.planes} planes",
        )


def _tail_problems(prefix: str, model: DeviceModel) -> Iterator[Problem]:
    if model.tail_latency_s is None:
        return
    key = f"{prefix}.tail_latency"
    if model.latency_s == 0:
        yield Problem(key, f"{key}: a latency of 0 has no tail; raise {prefix}.latency")
    else:
        most_s = TAIL_RATIO_MAX * model.latency_s
        yield from outside(key, model.tail_latency_s, model.latency_s, most_s, format_seconds)


def _throttle_problems(prefix: str, model: DeviceModel) -> Iterator[Problem]:
    if model.sustained_iops is None:
        for name, value in (("burst", model.burst), ("refill", model.refill_s)):
            if value is not None:
                key = f"{prefix}.{name}"
                yield Problem(key, f"{key} is of a throttle: give {prefix}.sustained_iops too")
        return
    yield from outside(f"{prefix}.sustained_iops", model.sustained_iops, 1, 1e15)
    yield from given_outside(f"{prefix}.burst", model.burst, 1, COUNT_MAX)
    yield from given_outside(f"{prefix}.refill", model.refill_s, 1e-6, 3600, format_seconds)
    if model.refill_s is None:
        return
    step = model.sustained_iops * model.refill_s
    if step > COUNT_MAX:
        yield Problem(
            f"{prefix}.refill",
            f"{prefix}.refill is {format_seconds(model.refill_s)}: a step of {step:.3g} operations "
            f"at {prefix}.sustained_iops is more than {COUNT_MAX}; lower one of the two",
        )
    elif model.burst is not None and model.burst < math.floor(step):
        yield Problem(
            f"{prefix}.burst",
            f"{prefix}.burst is {model.burst}: it must hold one step of the throttle, "
            f"{math.floor(step)} operations (sustained_iops x refill); raise it or leave it out",
        )
