"""The error tree.

Every error of kvtier is a :class:`KvtierError` and also the builtin that a caller without
knowledge of kvtier would catch. A message is one line: what is wrong, where, and what to do.
"""

from __future__ import annotations


class KvtierError(Exception):
    """Base of every error that kvtier raises on purpose."""


class SettingsError(KvtierError, ValueError):
    """A setting is unknown, has a wrong unit, or asks for what the machine cannot give."""


class TraceError(KvtierError, ValueError):
    """A trace is missing, truncated, foreign, or breaks its schema."""


class UnknownBackendError(KvtierError, LookupError):
    """No installed package declares a backend of that name."""


class BackendError(KvtierError, OSError):
    """A backend could not be opened, or could not do what was asked of it."""


class UnavailableError(BackendError):
    """A backend was not even asked, for it failed too often or has enough to do; try later."""


class ProtocolError(KvtierError, ValueError):
    """A peer sent bytes that are no frame of the wire protocol."""


class DeviceError(KvtierError, OSError):
    """A tier's device cannot be opened, or is not there."""


class DeviceLostError(DeviceError):
    """A tier's device worked when it was opened, and failed later for good."""


class LimitError(KvtierError, ValueError):
    """A request is larger than the configured bound."""


class LoopError(KvtierError, RuntimeError):
    """A cache was used in another event loop than the one that it was opened in."""


class ClosedError(KvtierError, RuntimeError):
    """The cache, tier or backend was closed."""
