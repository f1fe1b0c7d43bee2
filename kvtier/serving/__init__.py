"""A model server in virtual time: continuous batching of sequences on the model of a GPU.

The batcher decides, the roofline says how long a step takes, and an engine lets that time pass.
"""

from kvtier.serving.arrivals import Arrivals, Handover
from kvtier.serving.batcher import Batch, Batcher, Chunk, Job
from kvtier.serving.engine import Engine, Prompts, Role
from kvtier.serving.meter import NodeMeter, ServingMeter, ttft_saved
from kvtier.serving.roofline import Roofline, kv_capacity_bytes, weights_bytes
from kvtier.serving.sequence import Sequence
from kvtier.serving.service import ROLES, Bounds, Service

__all__ = [
    "ROLES",
    "Arrivals",
    "Batch",
    "Batcher",
    "Bounds",
    "Chunk",
    "Engine",
    "Handover",
    "Job",
    "NodeMeter",
    "Prompts",
    "Role",
    "Roofline",
    "Sequence",
    "Service",
    "ServingMeter",
    "kv_capacity_bytes",
    "ttft_saved",
    "weights_bytes",
]
