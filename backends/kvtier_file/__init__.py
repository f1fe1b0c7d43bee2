"""A backend in a directory: one file per object."""

from kvtier_file.backend import FileBackend

__all__ = ["FileBackend"]
