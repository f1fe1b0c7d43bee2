"""A backend in Redis or Valkey: one server, or a Cluster."""

from kvtier_redis.backend import RedisBackend

__all__ = ["RedisBackend"]
