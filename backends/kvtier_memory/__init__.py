"""A backend in the memory of this process: for tests, demonstrations and small truths."""

from kvtier_memory.backend import MemoryBackend

__all__ = ["MemoryBackend"]
