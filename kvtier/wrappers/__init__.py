"""Backends around other backends: each is one itself, and passes the same contract suite."""

from kvtier.wrappers.wrapper import Wrapper
from kvtier.wrappers.wrapping import Wrapped, counts_of, wrapped

__all__ = ["Wrapped", "Wrapper", "counts_of", "wrapped"]
