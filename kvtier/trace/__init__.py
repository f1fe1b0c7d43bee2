"""Recorded traces: opened and streamed, written, imported, measured.

``docs/traces.md`` describes the file format.
"""

from kvtier.trace.footprint import Footprint, footprint
from kvtier.trace.generators import RandomReads, write_random_reads
from kvtier.trace.geometry import GEOMETRIES, ModelGeometry, geometry
from kvtier.trace.importing import FORMATS, format_options, import_trace
from kvtier.trace.inspection import inspect_trace
from kvtier.trace.metadata import IdScope, TraceKind, TraceMetadata, TraceObject
from kvtier.trace.reader import PageTrace, RequestTrace, Trace, open_trace
from kvtier.trace.records import NO_PARENT, READ, WRITE, PageRequest, Request
from kvtier.trace.writer import TraceSummary, write_page_io, write_requests

__all__ = [
    "FORMATS",
    "GEOMETRIES",
    "NO_PARENT",
    "READ",
    "WRITE",
    "Footprint",
    "IdScope",
    "ModelGeometry",
    "PageRequest",
    "PageTrace",
    "RandomReads",
    "Request",
    "RequestTrace",
    "Trace",
    "TraceKind",
    "TraceMetadata",
    "TraceObject",
    "TraceSummary",
    "footprint",
    "format_options",
    "geometry",
    "import_trace",
    "inspect_trace",
    "open_trace",
    "write_page_io",
    "write_random_reads",
    "write_requests",
]
