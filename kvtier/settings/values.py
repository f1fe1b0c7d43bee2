"""The values themselves, in bytes, seconds and pages; a docstring says what each one means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from kvtier.pages import PAGE_BYTES_DEFAULT
from kvtier.settings.compute import ComputeSettings, ServingSettings
from kvtier.settings.faults import FaultSettings
from kvtier.settings.resilience import ResilienceSettings
from kvtier.settings.serve import ServeSettings
from kvtier.ssd import SsdModel

TierName = Literal["hbm", "dram", "nvme"]
WriteRule = Literal["through", "none"]
Device = Literal["auto", "cuda", "cpu"]
Engine = Literal["auto", "uring", "threads", "aiofiles"]
Drive = Literal["waves", "closed", "open", "serving"]
RouteKind = Literal["p2p", "host"]
Spread = Literal["session", "round_robin"]
IssuedBy = Literal["gpu", "host"]

Admit: TypeAlias = float | Literal["second touch"]
"""A share of the missed pages, 0 to 1, or those that were missed before."""

Parts: TypeAlias = str | tuple[str, ...]
"""A part of a machine, or several."""


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """A device in virtual time: a latency, and the slower of an operation and a byte rate.

    The first three are enough. What is None describes nothing; ``kvtier calibrate`` finds the
    rest out, and :mod:`kvtier.emulator.queueing` says how each acts.

    Attributes:
        latency_s: from the start of an operation until its bytes are usable, on an idle device;
            the median where there is a ``tail_latency_s``.
        iops: operations started per second.
        bytes_per_s: bandwidth, decimal.
        devices: so many alike share the load evenly, as striped drives do.
        preset: where the figures come from; in TOML, the preset that gives those left out.
        tail_latency_s: 99th percentile of ``latency_s``; None: every operation takes as long.
        batch: operations that are taken together, worked off in turn and pay ``latency_s`` once,
            as the disk of a virtual machine does; None: each pays its own, beside the others.
        sustained_iops: operations per second that a throttle lets through; None: no throttle.
        burst: operations that it lets through at once after a pause.
        refill_s: it lets more through in steps of so long; None: one by one.
        write_latency_s, write_iops, write_bytes_per_s: of writes; None: as of reads.
        flash: a drive as it is built, with its own queues; the figures above then only describe it.
    """

    latency_s: float
    iops: float
    bytes_per_s: float
    devices: int = 1
    preset: str = "custom"
    tail_latency_s: float | None = None
    batch: int | None = None
    sustained_iops: float | None = None
    burst: int | None = None
    refill_s: float | None = None
    write_latency_s: float | None = None
    write_iops: float | None = None
    write_bytes_per_s: float | None = None
    flash: SsdModel | None = None


@dataclass(frozen=True, slots=True)
class TierSettings:
    """One cache tier.

    Attributes:
        name: ``hbm``, ``dram`` or ``nvme``; tiers are searched in this order.
        capacity_bytes: payload bytes; rounded down to whole sets. In TOML, 0 leaves the tier out.
        ways: slots of a set: 8, 16 or 32.
        admit: share of missed pages that reserve a slot, 0 to 1, chosen by hash, so runs repeat; or
            ``second touch``: those that were missed before, as far as a filter with as many places
            as the tier has slots remembers. In TOML ``all`` is 1.
        write: whether written objects are kept here, as far as they are admitted: a new page is
            touched for the first time.
        write_limit_bytes_per_s: what is written to an ``nvme`` tier on average, and in one second
            at once; what would be more is not kept. None: no limit.
        path: the file of an ``nvme`` tier, which is warm when it is opened again; None takes a
            temporary one.
        paths: in its place several files, over which the tier is striped: one for each drive.
        stripe_bytes: how much lies in one of them before the next one has its turn; rounded up to
            whole pages.
        rebuild: make the files of an ``nvme`` tier anew, whatever log they hold.
        write_buffer_bytes: memory for pages that an ``nvme`` tier has not written out yet; two
            segments at least.
        engine: how an ``nvme`` tier does its I/O; ``auto`` is ``uring`` where the system allows it,
            else ``threads``.
        queue_depth: operations in flight at the device of an ``nvme`` tier.
        direct: open the file with O_DIRECT where the file system can.
        merge_gap_pages: unwanted pages read to join two extents into one; 0 joins neighbours only.
        extent_pages_max: most pages of one device read; 1 never merges.
        segment_bytes: payload that an ``nvme`` tier writes, and later lets go, as a whole; smaller
            in a tier that would have fewer than 8 of them.
        model: the device in virtual time (``simulate``).
        faults: how an ``nvme`` tier's drive misbehaves on purpose; None: not at all.
    """

    name: TierName
    capacity_bytes: int
    ways: int = 16
    admit: Admit = 1.0
    write: WriteRule = "through"
    write_limit_bytes_per_s: float | None = None
    path: Path | None = None
    paths: tuple[Path, ...] = ()
    stripe_bytes: int = 512 << 10
    rebuild: bool = False
    write_buffer_bytes: int = 32 << 20
    engine: Engine = "auto"
    queue_depth: int = 128
    direct: bool = True
    merge_gap_pages: int = 0
    extent_pages_max: int = 32
    segment_bytes: int = 4 << 20
    model: DeviceModel | None = None
    faults: FaultSettings | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Its files that have a name; empty: it takes a temporary one, if any."""
        return self.paths or (() if self.path is None else (self.path,))


@dataclass(frozen=True, slots=True)
class OriginSettings:
    """The last level, a backend that holds the truth.

    Attributes:
        backend: its name in the entry-point group ``kvtier.backends``.
        options: what its ``open`` gets.
        write: whether written objects are put there before a write is done.
        merge_gap_pages, extent_pages_max, model: as in :class:`TierSettings`.
        latency: a device that the backend is slowed down to on the wall clock; None: as it is.
        resilience: what to do where the backend is slow, fails or is gone, on the wall clock.
    """

    backend: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    write: WriteRule = "through"
    merge_gap_pages: int = 0
    extent_pages_max: int = 32
    model: DeviceModel | None = None
    latency: DeviceModel | None = None
    resilience: ResilienceSettings = field(default_factory=ResilienceSettings)


@dataclass(frozen=True, slots=True)
class ChainSettings:
    """Bounds of the read-through chain.

    Attributes:
        batch_pages_max: most pages of one batch; a longer read is cut into several.
        inflight_pages_max: pages being fetched at once, all batches together.
        device_batch_pages: pages of one staging buffer, so of one batch given to a device.
        staging_bytes: memory for pages on their way, all levels together.
        objects_max: objects that the directory remembers.
        coalesce: False turns folding, joining and merging off, so that every demand read is a
            device read of its own: what coalescing is measured against. Only without tiers.
    """

    batch_pages_max: int = 1 << 16
    inflight_pages_max: int = 1 << 17
    device_batch_pages: int = 256
    staging_bytes: int = 64 << 20
    objects_max: int = 1 << 20
    coalesce: bool = True


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How a trace is driven.

    Attributes:
        concurrency: requests under way at once. A wave takes the next batch of every one; in an
            open loop and in ``serving``, those that come while so many are under way wait.
        pages_per_block: pages that stand for one KV block of a request trace; fewer than the
            model's geometry gives is reported as *scaled*. 0 takes 4 in a replay, whose bytes
            really move, and the full geometry in a simulation.
        model: the model preset that gives the geometry of a request trace.
        verify_share: share of delivered pages whose bytes are checked.
        series_interval_s: seconds between two points of the report's series, at least; a long
            run doubles it until the points are few enough.
        drive: ``waves``: the next batches of all active requests together, one wave after the
            other. ``closed``: each request goes on by itself, and the next one comes when one
            ends. ``open``: requests come at their recorded times. ``serving``: so they do, and a
            model that batches them computes what no level has (``simulate`` only).
        compute_s: in a closed or an open loop, how long a request computes between the answer of
            a batch and its next one. None takes 0 in a closed loop, and in an open loop the
            recorded time between the two batches.
        tick_s: in virtual time, batches are issued at multiples of it, and those of one moment
            share a chain batch. On the wall clock those do that are ready at once.
        spread: which of several GPUs a request goes to. ``session``: all requests of a session to
            one, chosen by hash. ``round_robin``: one after the other. None takes ``session`` for
            a request trace, and ``round_robin`` for a page trace, which has no sessions.
        speed: recorded times of an open loop, and of ``serving``, are divided by it.
    """

    concurrency: int = 64
    pages_per_block: int = 0
    model: str = "llama-3-8b"
    verify_share: float = 1 / 16
    series_interval_s: float = 0.01
    drive: Drive = "waves"
    compute_s: float | None = None
    tick_s: float = 10e-6
    speed: float = 1.0
    spread: Spread | None = None


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """A link between two parts: PCIe, a NIC's port, a network. Both directions are alike.

    Attributes:
        name: of the link.
        between: the two parts; a part is there as soon as a link names it. Where one end is
            several parts, each of them has such a link of its own.
        model: of one direction: latency, and the slower of a message and a byte rate.
    """

    name: str
    between: tuple[Parts, Parts]
    model: DeviceModel


@dataclass(frozen=True, slots=True)
class TopologySettings:
    """A machine as a graph.

    Several GPUs have a cache each, as servers run one process for each: tiers of the configured
    capacity, a chain and its bounds. They share the origin's objects, and what hardware they meet.

    Attributes:
        links: of which all routes are made.
        places: the part that each level is at, by its name (``hbm``, ``dram``, ``nvme``,
            ``origin``). All GPUs share the level's device there. Several parts, one for each GPU
            in their order: every part has a device of its own, which those GPUs share that name
            it. A level without a place is beside every GPU, no link between them; ``hbm`` is then
            each GPU's own, any other level is one device that all share.
        gpu: the part that needs the pages, where there is one.
        gpus: such parts, where there are several; empty: ``gpu`` alone.
        host: the part that a route of the kind ``host`` passes.
        route: whether pages of drives and of the origin go to the GPU by the shortest way
            (``p2p``) or through the host's memory (``host``).
        issue: what starts the operations of drives and of the origin, and how many per second it
            can: host cores or SMs of the GPU (``devices``); None: as many as there are.
        issue_by: whether those are in each GPU, so that each has so many of its own (``gpu``), or
            in the host, so that all GPUs share them (``host``). None: as ``issue`` has a preset.
    """

    links: tuple[LinkSettings, ...] = ()
    places: Mapping[str, Parts] = field(default_factory=lambda: MappingProxyType({}))
    gpu: str = "gpu"
    gpus: tuple[str, ...] = ()
    host: str = "host"
    route: RouteKind = "p2p"
    issue: DeviceModel | None = None
    issue_by: IssuedBy | None = None


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What the host's software takes in virtual time: one thing after the other, as on one core.

    ``kvtier calibrate`` measures it. Half of the work for operations of a device is done
    before them, and half after.

    Attributes:
        batch_s: of a batch of the chain, and of the copy of what the first memory has of it.
        copy_s: of any other copy between memories: to the caller, or into a tier in memory.
        page_s: of each page that is copied.
        device_batch_s: of operations given to a device or the origin together.
        operation_s: of each of them.
        request_s: of each batch that a request asks for, before it joins one of the chain: what
            drives the requests in waves takes it.
        paced_request_s: the same in the other drives.
        wait_s: that operations given to a device together wait for threads to be woken; the host
            does other things meanwhile.
        operation_wait_s: the same for each of them.
    """

    batch_s: float = 0.0
    copy_s: float = 0.0
    page_s: float = 0.0
    device_batch_s: float = 0.0
    operation_s: float = 0.0
    request_s: float = 0.0
    paced_request_s: float = 0.0
    wait_s: float = 0.0
    operation_wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a run needs to know.

    Attributes:
        page_bytes: bytes of a page, a multiple of 512 from 512 B to 4 MiB.
        seed: seed of every hash and every random choice.
        device: where the ``hbm`` tier lives; ``auto`` takes a GPU where there is one.
        tiers: the cache tiers, fastest first; may be empty if there is an origin.
        origin: the last level, or None: a page that no tier has is then ABSENT.
        topology: the links that pages travel over in virtual time; None: those of each level's
            model alone.
        compute: the GPUs that the model runs on in a drive ``serving``.
        serving: how that drive spreads its work.
        host: what its software takes in virtual time; None: nothing.
        serve: how ``kvtier serve`` lets others in.
    """

    page_bytes: int = PAGE_BYTES_DEFAULT
    seed: int = 1
    device: Device = "auto"
    tiers: tuple[TierSettings, ...] = ()
    origin: OriginSettings | None = None
    chain: ChainSettings = ChainSettings()
    replay: ReplaySettings = ReplaySettings()
    topology: TopologySettings | None = None
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    serving: ServingSettings = field(default_factory=ServingSettings)
    host: HostSettings | None = None
    serve: ServeSettings = field(default_factory=ServeSettings)
