"""From settings to a running cache, and everything closed again in the right order."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from kvtier.backend import Backend
from kvtier.cache import TieredCache
from kvtier.chain import Chain, build_chain
from kvtier.clock import Clock, WallClock
from kvtier.cuda import open_gpu
from kvtier.directory import ObjectDirectory, ObjectEntry
from kvtier.driver import AsyncDriver
from kvtier.errors import SettingsError
from kvtier.gpu import Gpu
from kvtier.gpu_driver import GpuDriver
from kvtier.identities import Identities
from kvtier.levels import Levels
from kvtier.machine import check_machine
from kvtier.origin import Origin
from kvtier.registry import open_backend
from kvtier.settings import Settings, validate
from kvtier.tiers import CudaTier, NvmeTier, Tier, open_tier
from kvtier.wrappers import wrapped

logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_cache(
    settings: Settings,
    *,
    clock: Clock | None = None,
    origin: Backend | None = None,
    make_chain: Callable[..., Chain] = Chain,
    gpu: Gpu | None = None,
) -> AsyncIterator[TieredCache[AsyncDriver]]:
    """A cache as ``settings`` describe it, closed at the end of the block.

    Args:
        settings: checked before anything is opened.
        clock: for latencies; the wall clock by default.
        origin: an open backend to use in the place of the one that ``settings.origin`` names (it
            must name one, for its rules hold); it stays open.
        make_chain: takes what :class:`kvtier.chain.Chain` takes; another one may log what it is
            told (:mod:`kvtier.events`).
        gpu: where the ``hbm`` tier lives, in the place of the one that ``settings.device`` means.

    Raises:
        SettingsError: a setting is wrong, or asks for more than the machine has.
        UnknownBackendError, BackendError, DeviceError: a level cannot be opened.
    """
    given: object = settings
    if not isinstance(given, Settings):
        name = type(given).__name__
        raise SettingsError(f"open_cache takes Settings, not a {name}: load_settings makes them")
    validate(settings)
    check_machine(settings)
    if origin is not None and settings.origin is None:
        raise SettingsError("an open origin was given, but the settings have no [origin]")
    clock = clock or WallClock()
    async with AsyncExitStack() as stack:
        backend, deadline_s = await _open_origin(stack, settings, origin, clock)
        chain = _build_chain(settings, backend, make_chain)
        tiers, identities, kept = await _open_tiers(stack, settings, gpu)
        directory = _new_directory(settings, identities, kept)

        def forget(entries: Sequence[ObjectEntry]) -> None:
            cache.catalogue.forget(entries)

        levels = Levels(
            tiers,
            None if backend is None else Origin(backend, directory, forget),
            page_bytes=settings.page_bytes,
            buffers=chain.buffer_count,
            buffer_pages=settings.chain.device_batch_pages,
        )
        make_driver = GpuDriver if tiers and isinstance(tiers[0], CudaTier) else AsyncDriver
        driver = make_driver(chain, levels, settings.page_bytes, clock, deadline_s)
        cache = TieredCache(
            driver, directory, backend, settings, None if kept is None else kept.retire
        )
        if kept is not None:
            stack.push_async_callback(_remember_all, kept, directory)
        stack.push_async_callback(driver.close)
        yield cache


async def _open_origin(
    stack: AsyncExitStack, settings: Settings, origin: Backend | None, clock: Clock
) -> tuple[Backend | None, float | None]:
    """The origin, if there is one, with its wrappers; and the deadline of reads."""
    named = settings.origin
    if named is None:
        return None, None
    if origin is None:
        origin = await open_backend(named.backend, named.options, settings.page_bytes)
        stack.push_async_callback(origin.close)
    outer = wrapped(origin, named, settings.page_bytes, seed=settings.seed, clock=clock)
    stack.push_async_callback(outer.release)
    return outer.backend, outer.deadline_s


def _build_chain(
    settings: Settings, origin: Backend | None, make_chain: Callable[..., Chain]
) -> Chain:
    if origin is None:
        return build_chain(settings, make=make_chain)
    return build_chain(
        settings,
        origin_extent_pages_max=origin.capability.extent_pages_max,
        origin_batch_extents_max=origin.capability.batch_extents_max,
        make=make_chain,
    )


async def _open_tiers(
    stack: AsyncExitStack, settings: Settings, gpu: Gpu | None
) -> tuple[list[Tier], Identities | None, NvmeTier | None]:
    """The tiers; and of the one that outlasts the cache, if any, the identities and itself."""
    if gpu is None and any(tier.name == "hbm" for tier in settings.tiers):
        gpu = open_gpu(settings.device)
    tiers: list[Tier] = []
    identities = kept = None
    for named in settings.tiers:
        if named.files:
            identities = Identities(settings.chain.objects_max)
        tier = await open_tier(named, settings.page_bytes, settings.seed, gpu, identities)
        stack.push_async_callback(tier.close)
        tiers.append(tier)
        if isinstance(tier, NvmeTier) and named.files:
            kept = tier
    return tiers, identities, kept


def _new_directory(
    settings: Settings, identities: Identities | None, kept: NvmeTier | None
) -> ObjectDirectory:
    """A directory that knows what ``kept`` brought back."""
    origin_is_truth = settings.origin is not None and settings.origin.write == "through"
    restored = None if kept is None else kept.restored
    if origin_is_truth and restored is not None and restored.local:
        logger.warning(
            "the nvme tier holds %d objects that no origin had: they are not found beside an "
            "origin that is written through (origin.write = 'none' finds them)",
            restored.local,
        )
    return ObjectDirectory(
        settings.chain.objects_max, identities, restored, origin_is_truth=origin_is_truth
    )


async def _remember_all(tier: NvmeTier, directory: ObjectDirectory) -> None:
    """At the end, when nothing is written any more."""
    await tier.retire(directory.retired())
