"""What obstore's errors mean, and how they are told in one line.

obstore raises one error for most of what can go wrong; its text has the status of the answer, the
store's XML, and a dump of what happened below. That text is only read to tell a person what to do,
and to know a 416. Nothing of it is passed on unread: it may hold what was signed.
"""

from __future__ import annotations

import re
from typing import Final

from obstore.exceptions import BaseError

StoreError: Final = (BaseError, OSError)
"""What obstore raises for a request that failed."""

_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>([A-Za-z0-9]+)</Code>")

_BY_CODE: Final = {
    "NoSuchBucket": "there is no such bucket: make it, or name another in 'bucket'",
    "InvalidBucketName": "that is no name of a bucket: correct 'bucket'",
    "InvalidAccessKeyId": "the access key is not known there: correct 'access_key_id'",
    "SignatureDoesNotMatch": "the signature is wrong: correct 'secret_access_key'",
    "InvalidToken": "the session token is wrong: correct 'session_token'",
    "ExpiredToken": "the session token has expired: get a new one",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
    "PermanentRedirect": "the bucket is elsewhere: correct 'region' or 'endpoint'",
    "AuthorizationHeaderMalformed": "the bucket is in another region: correct 'region'",
    "IllegalLocationConstraintException": "the bucket is in another region: correct 'region'",
}
_BY_STATUS: Final = {
    301: "the bucket is elsewhere: correct 'region' or 'endpoint'",
    307: "the bucket is elsewhere: correct 'region' or 'endpoint'",
    401: "the credentials are refused: correct them",
    403: "permission denied: give these credentials the rights to {right}",
}
_BY_TEXT: Final = (
    ("ConnectionRefused", "connection refused: is the store running there?"),
    ("dns error", "no such host: correct 'endpoint'"),
    ("InvalidCertificate", "its certificate is not trusted: name its authority in 'ca_file'"),
    ("UnknownIssuer", "its certificate is not trusted: name its authority in 'ca_file'"),
    ("BadScheme", "it is http without TLS: set 'allow_http', or give an https endpoint"),
    ("InvalidContentType", "it does not speak TLS: is 'endpoint' an http:// one?"),
    ("InvalidMessage", "it does not speak TLS: is 'endpoint' an http:// one?"),
    ("redirect", "the bucket is elsewhere: correct 'region' or 'endpoint'"),
    ("kind: Timeout", "no answer in time: is that the address of an S3 store?"),
    ("TimedOut", "no answer in time: is that the address of an S3 store?"),
)
_METADATA: Final = ("/latest/api/token", "/latest/meta-data/")
"""Where an instance of a cloud gets its credentials, which is asked when there are none."""

_NO_CREDENTIALS: Final = (
    "there are no credentials: give 'access_key_id' and 'secret_access_key', or 'anonymous'"
)
_URL: Final = re.compile(r"https?://\S+")


def status_of(error: Exception) -> int | None:
    """The HTTP status that an error tells of; None where no answer came."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def is_absent(error: Exception) -> bool:
    """Whether there is no such object."""
    return isinstance(error, FileNotFoundError)


def reason(error: Exception, right: str) -> str:
    """What went wrong and what to do, in one line.

    Args:
        error: one of ``StoreError``.
        right: what was tried, as the rights that it takes are called.
    """
    text = str(error)
    if any(path in text for path in _METADATA):
        return _NO_CREDENTIALS
    status, code = status_of(error), _CODE.search(text)
    if code and code[1] in _BY_CODE:
        return _BY_CODE[code[1]]
    if status in _BY_STATUS:
        return _BY_STATUS[status].format(right=right)
    if status is not None:
        return f"{right} was answered by {status}" + (f" ({code[1]})" if code else "")
    for sign, meaning in _BY_TEXT:
        if sign in text:
            return meaning
    # A URL may be signed.
    return f"{right} failed: {_URL.sub('(a URL)', text.splitlines()[0])}"
