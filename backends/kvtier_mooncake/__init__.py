"""A backend over Mooncake Store, a distributed store in the memory of many hosts."""

from kvtier_mooncake.backend import MooncakeBackend

__all__ = ["MooncakeBackend"]
