"""Settings: frozen values that a user tunes, read from TOML.

Sizes, times and rates are written with their unit (``"64 GiB"``, ``"80 us"``, ``"7 GB/s"``) and
held in bytes, seconds and bytes per second. Parts that do work are never in here.
"""

from kvtier.settings.checks import validate
from kvtier.settings.compute import (
    COMPUTE_PRESETS,
    ComputeSettings,
    ServingSettings,
    compute_source,
)
from kvtier.settings.described import to_dict
from kvtier.settings.faults import FaultSettings, ReadFaultSettings, WriteFaultSettings
from kvtier.settings.gpus import device_names, gpus_of
from kvtier.settings.presets import MODEL_PRESETS, default_model, model_source
from kvtier.settings.resilience import (
    BreakerSettings,
    NegativeSettings,
    RateSettings,
    ResilienceSettings,
    RetrySettings,
)
from kvtier.settings.serve import ServeSettings
from kvtier.settings.toml import default_settings, load_settings, parse_assignment
from kvtier.settings.values import (
    Admit,
    ChainSettings,
    Device,
    DeviceModel,
    Engine,
    HostSettings,
    LinkSettings,
    OriginSettings,
    ReplaySettings,
    Settings,
    Spread,
    TierName,
    TierSettings,
    TopologySettings,
    WriteRule,
)

__all__ = [
    "COMPUTE_PRESETS",
    "MODEL_PRESETS",
    "Admit",
    "BreakerSettings",
    "ChainSettings",
    "ComputeSettings",
    "Device",
    "DeviceModel",
    "Engine",
    "FaultSettings",
    "HostSettings",
    "LinkSettings",
    "NegativeSettings",
    "OriginSettings",
    "RateSettings",
    "ReadFaultSettings",
    "ReplaySettings",
    "ResilienceSettings",
    "RetrySettings",
    "ServeSettings",
    "ServingSettings",
    "Settings",
    "Spread",
    "TierName",
    "TierSettings",
    "TopologySettings",
    "WriteFaultSettings",
    "WriteRule",
    "compute_source",
    "default_model",
    "default_settings",
    "device_names",
    "gpus_of",
    "load_settings",
    "model_source",
    "parse_assignment",
    "to_dict",
    "validate",
]
