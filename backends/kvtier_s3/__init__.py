"""A backend in a bucket of any S3-compatible object store: one S3 object per object."""

from kvtier_s3.backend import S3Backend

__all__ = ["S3Backend"]
