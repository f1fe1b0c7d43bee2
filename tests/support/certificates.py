"""Certificates in files, as servers and clients of other languages take them."""

from __future__ import annotations

import datetime
from pathlib import Path

import trustme

_DAY = datetime.timedelta(days=1)


class Authority:
    """Signs certificates for 127.0.0.1.

    Attributes:
        ca_file: what a client that trusts it is given.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca_file)

    def sign(self, name: str, *, has_expired: bool = False) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1, and its key."""
        end = datetime.datetime.now(datetime.UTC) + (-_DAY if has_expired else _DAY)
        signed = self._authority.issue_cert("127.0.0.1", not_before=end - 2 * _DAY, not_after=end)
        cert_file, key_file = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        signed.cert_chain_pems[0].write_to_path(cert_file)
        signed.private_key_pem.write_to_path(key_file)
        return cert_file, key_file
