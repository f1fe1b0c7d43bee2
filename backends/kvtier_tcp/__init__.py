"""A backend on another host, behind ``kvtier serve``."""

from kvtier_tcp.backend import TcpBackend

__all__ = ["TcpBackend"]
