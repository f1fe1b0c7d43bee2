"""Whether this machine can give what the settings ask for; asked before any work starts."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Final

from kvtier.environment import gpu_names, memory_available_bytes
from kvtier.errors import SettingsError
from kvtier.index.log_geometry import log_geometry
from kvtier.io.stripe_labels import LABEL_BYTES
from kvtier.io.striped import file_sizes, stripe_bytes_for
from kvtier.settings import Settings, TierSettings, gpus_of
from kvtier.tiers import slots_of
from kvtier.tiers.log_format import LogLayout, layout_of
from kvtier.tiers.log_writer import buffers_for
from kvtier.units import format_bytes

LOCATION_BYTES: Final = 66
"""Memory for each location of a log: 48.5 bytes of its index, and 17 of its mirror."""

_WRITTEN_BYTES: Final = 20
"""Of the bytes of the index, those that say nowhere when it is opened."""


def check_machine(settings: Settings) -> None:
    """Compare the tiers with the memory and the disk that are free now.

    An ``hbm`` tier counts as host memory unless it will live on a GPU.

    Raises:
        SettingsError: they need more than there is, or the directory of the ``nvme`` tier is
            not there.
    """
    _check_memory(settings, memory_available_bytes())
    for tier in settings.tiers:
        if tier.name == "nvme":
            _check_disk(tier, settings.page_bytes)


def check_emulated(settings: Settings) -> None:
    """Compare the indexes of modelled drives with the memory that is free now.

    Only what is written when they are opened counts: the rest takes memory as it is used.

    Raises:
        SettingsError: they need more than there is.
    """
    caches = len(gpus_of(settings.topology))
    drives = [tier for tier in settings.tiers if tier.name == "nvme"]
    capacities = [tier.capacity_bytes for tier in drives]
    locations = sum(_layout_of(tier, settings.page_bytes).locations for tier in drives)
    needed_bytes = caches * locations * _WRITTEN_BYTES
    available_bytes = memory_available_bytes()
    if available_bytes is not None and needed_bytes > available_bytes:
        what = "the index needs" if caches == 1 else f"the indexes of {caches} GPUs need"
        raise SettingsError(
            f"tiers.nvme.capacity is {format_bytes(sum(capacities))}: {what} "
            f"{format_bytes(needed_bytes)} of memory at least, and {format_bytes(available_bytes)} "
            "are available; lower it, or take larger pages (page_bytes)"
        )


def _check_memory(settings: Settings, available_bytes: int | None) -> None:
    hosted = ("dram",) if _hbm_is_on_gpu(settings) else ("hbm", "dram")
    parts: dict[str, int] = {t.name: t.capacity_bytes for t in settings.tiers if t.name in hosted}
    for tier in settings.tiers:
        if tier.name == "nvme":
            layout = _layout_of(tier, settings.page_bytes)
            segment_bytes = layout.segment_pages * layout.page_bytes
            buffers = buffers_for(layout, tier.write_buffer_bytes)
            parts["nvme write buffer"] = buffers * segment_bytes
            parts["nvme index"] = layout.locations * LOCATION_BYTES
    needed_bytes = sum(parts.values()) + settings.chain.staging_bytes
    if available_bytes is not None and needed_bytes > available_bytes:
        listed = " + ".join(f"{name} {format_bytes(size)}" for name, size in parts.items())
        raise SettingsError(
            f"tiers and staging need {format_bytes(needed_bytes)} of memory ({listed} + staging "
            f"{format_bytes(settings.chain.staging_bytes)}), and {format_bytes(available_bytes)} "
            "are available; lower tiers.*.capacity"
        )


def _check_disk(tier: TierSettings, page_bytes: int) -> None:
    """Of each file by itself; that they fit together shows when their space is reserved."""
    paths: tuple[Path | None, ...] = tier.paths or (tier.path,)
    key = "tiers.nvme.paths" if tier.paths else "tiers.nvme.path"
    for path, file_bytes in zip(paths, _file_sizes(tier, page_bytes), strict=True):
        directory = Path(tempfile.gettempdir()) if path is None else path.absolute().parent
        if not directory.is_dir():
            raise SettingsError(
                f"{key}: there is no directory {directory}; create it or name another"
            )
        if path is not None and path.is_dir():
            raise SettingsError(f"{key}: {path} is a directory; name a file in it")
        # A file that is there already is overwritten in place: its bytes count as free.
        kept_bytes = path.stat().st_size if path and path.exists() else 0
        free_bytes = shutil.disk_usage(directory).free + kept_bytes
        if file_bytes > free_bytes:
            raise SettingsError(
                f"tiers.nvme.capacity is {format_bytes(tier.capacity_bytes)}: that takes a file of "
                f"{format_bytes(file_bytes)}, and {format_bytes(free_bytes)} are free in "
                f"{directory}; lower it or name a {key} on a larger disk"
            )


def _file_sizes(tier: TierSettings, page_bytes: int) -> list[int]:
    """Bytes of each file of an ``nvme`` tier."""
    size_bytes = _layout_of(tier, page_bytes).file_bytes
    count = len(tier.paths)
    if count < 2:
        return [size_bytes]
    sizes = file_sizes(size_bytes, count, stripe_bytes_for(tier.stripe_bytes, page_bytes))
    return [LABEL_BYTES + size for size in sizes]


def _layout_of(tier: TierSettings, page_bytes: int) -> LogLayout:
    slots = slots_of(tier, page_bytes)
    return layout_of(log_geometry(slots, page_bytes, tier.segment_bytes), page_bytes)


def _hbm_is_on_gpu(settings: Settings) -> bool:
    if settings.device == "auto":
        return bool(gpu_names()) and importlib.util.find_spec("cupy") is not None
    return settings.device == "cuda"
