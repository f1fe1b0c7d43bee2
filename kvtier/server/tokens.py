"""Who may come in: tokens, and the tenant that each of them stands for.

Tokens are written one per line, beside the name of their tenant, and a ``#`` begins a comment::

    team-a  6f1a…     # several tokens of one tenant let it change them without a gap
    team-a  90c3…
    team-b  d2e7…

Where no line names a tenant there are none: whoever has a token has the whole store.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvtier.errors import SettingsError
from kvtier.settings import ServeSettings

_LOG: Final = logging.getLogger(__name__)

TOKEN_BYTES_MAX: Final = 1024
"""Longest token: it must fit into the first frame of a stranger."""

TOKENS_MAX: Final = 4096

_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EVERYBODY: Final = ""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a server; only their digests are kept.

    Attributes:
        digests: SHA-256 of each token, and the name of its tenant, empty where there are none.
    """

    digests: tuple[tuple[bytes, str], ...] = field(repr=False)

    @classmethod
    def of(cls, tenants: Mapping[str, str]) -> Tokens:
        """Tokens and the names of their tenants; all empty, or none."""
        return cls(tuple((_digest(token.encode()), name) for token, name in tenants.items()))

    @classmethod
    def parse(cls, text: str, source: str) -> Tokens:
        """Tokens as the module describes them.

        Args:
            text: the lines.
            source: where they come from, for the message; which never holds a token.

        Raises:
            SettingsError: there is none; one has two tenants, or is too long; a name is none.
        """
        tenants: dict[str, str] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            where = f"{source} line {number}"
            if len(words) > 2:
                raise SettingsError(f"{where}: write a tenant and its token, or a token alone")
            tenant = words[0] if len(words) == 2 else _EVERYBODY
            _add(tenants, words[-1], tenant, where)
        if not tenants:
            raise SettingsError(f"{source}: is empty; put the token into it")
        return cls.of(tenants)

    def tenant_of(self, token: bytes) -> str | None:
        """The name of the tenant that ``token`` stands for, or None if it stands for nobody.

        Takes as long whatever is presented: all are compared, whole.
        """
        digest = _digest(token)
        found = None
        for known, tenant in self.digests:
            if hmac.compare_digest(known, digest):
                found = tenant
        return found


def load_tokens(settings: ServeSettings) -> Tokens | None:
    """The tokens that settings name; None where they name none.

    Raises:
        SettingsError: they cannot be read, or are none.
    """
    if settings.token_file is not None:
        return Tokens.parse(_read(settings.token_file), f"serve.token_file {settings.token_file}")
    if settings.token_env is not None:
        source = f"serve.token_env {settings.token_env}"
        if settings.token_env not in os.environ:
            raise SettingsError(f"{source}: there is no such environment variable; set it")
        text = os.environ[settings.token_env]
        if text.encode(errors="ignore").decode() != text:  # of bytes in the environment
            raise SettingsError(f"{source}: is no UTF-8 text")
        return Tokens.parse(text, source)
    return None


def _add(tenants: dict[str, str], token: str, tenant: str, where: str) -> None:
    if tenant and not _TENANT.fullmatch(tenant):
        raise SettingsError(
            f"{where}: the name of a tenant has 1 to 64 letters, digits, dots, dashes and "
            "underscores, and begins with a letter or digit"
        )
    if len(token.encode()) > TOKEN_BYTES_MAX:
        raise SettingsError(f"{where}: a token has {TOKEN_BYTES_MAX} bytes at most; shorten it")
    if tenants.get(token, tenant) != tenant:
        raise SettingsError(f"{where}: another tenant has this token already; make a new one")
    if tenants and (_EVERYBODY in tenants.values()) != (tenant == _EVERYBODY):
        raise SettingsError(
            f"{where}: some tokens have a tenant and others none; name the tenants of all, or of "
            "none"
        )
    if len(tenants) == TOKENS_MAX:
        raise SettingsError(f"{where}: there are more than {TOKENS_MAX} tokens; leave some out")
    tenants[token] = tenant


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except UnicodeDecodeError as error:
        raise SettingsError(f"serve.token_file {path}: is no UTF-8 text") from error
    except OSError as error:
        raise SettingsError(f"serve.token_file {path}: cannot be read: {error.strerror}") from error
    if mode & 0o077:
        _LOG.warning("%s: others can read it; chmod 600 keeps the tokens yours", path)
    return text


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
