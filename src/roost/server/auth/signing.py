"""Request signatures (spec/auth.md §2). Pure: the clock and the request come in as arguments."""

import functools
import hashlib
import hmac
import re
from datetime import UTC, datetime, timedelta

import msgspec
from dateutil import parser as date_parser

from roost.wire.errors import InvalidAuthParameters, NotAuthenticated

WINDOW = timedelta(minutes=15)
HASHES = frozenset({"sha256", "sha384", "sha512", "blake2b"})
_SCHEMES = frozenset({"BackendAI", "Sorna"})
_BODY_UNSIGNED_SINCE = "v4.20181215"
_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?(Z|[+-]\d\d:\d\d)", re.ASCII)
"""What clients send; parsed many times as fast as a date of any form."""
_ZONES = {"UTC": 0, "GMT": 0, "EST": -5 * 3600, "EDT": -4 * 3600, "PST": -8 * 3600, "PDT": -7 * 3600, "KST": 9 * 3600}


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """What an `Authorization` header says."""

    hash_name: str
    access_key: str
    signature: str


class SignedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a request that its signature covers."""

    method: str
    target: str
    """Path and query exactly as sent."""
    date: str
    """The raw text of the date header."""
    host: str
    content_type: str | None
    """The raw header; None where it is missing."""
    version: str
    version_header: str = "x-backendai-version"
    body: bytes = b""


def parse_date(text: str | None, now: datetime) -> datetime:
    """The instant that a date header names, in the header's own offset.

    Raises:
        InvalidAuthParameters: it is missing, unreadable, or not within 15 minutes of `now`.
    """
    if not text:
        raise InvalidAuthParameters("the Date header is missing")
    try:
        when = datetime.fromisoformat(text) if _ISO.fullmatch(text) else date_parser.parse(text, tzinfos=_ZONES)
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        off = abs(when - now)
    except (ValueError, OverflowError, date_parser.UnknownTimezoneWarning) as error:
        raise InvalidAuthParameters("the Date header cannot be read") from error
    if off >= WINDOW:
        raise InvalidAuthParameters("the Date header is outside the window of 15 minutes", hint="set the clock")
    return when


def parse_authorization(text: str) -> Credential:
    """Read an `Authorization` header.

    Raises:
        InvalidAuthParameters: it is malformed, or names a scheme or hash that we refuse.
    """
    scheme, _, rest = text.strip().partition(" ")
    if scheme not in _SCHEMES:
        raise InvalidAuthParameters("the Authorization header has an unknown scheme")
    pairs = (pair.partition("=") for pair in rest.split(","))
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    prefix, _, hash_name = fields.get("signMethod", "").lower().partition("-")
    if prefix != "hmac" or hash_name not in HASHES:
        raise InvalidAuthParameters("signMethod must be HMAC-SHA256, -SHA384, -SHA512 or -BLAKE2B")
    access_key, _, signature = fields.get("credential", "").partition(":")
    if not access_key or not signature:
        raise InvalidAuthParameters("the Authorization header has no credential")
    return Credential(hash_name=hash_name, access_key=access_key, signature=signature)


def string_to_sign(request: SignedRequest, hash_name: str) -> str:
    """The seven lines of spec/auth.md §2.4."""
    media_type = _media_type(request.content_type)
    covers_body = request.version < _BODY_UNSIGNED_SINCE and not media_type.startswith("multipart/")
    body = request.body if covers_body else b""
    lines = (
        request.method.upper(),
        request.target,
        request.date,
        f"host:{request.host}",
        f"content-type:{media_type}",
        f"{request.version_header}:{request.version}",
        _digest(hash_name, body),
    )
    return "\n".join(lines)


def sign(request: SignedRequest, secret_key: str, when: datetime, hash_name: str = "sha256") -> str:
    """The signature of a request, in lower-case hexadecimal."""
    # The day is that of the header's own offset, not of UTC.
    signing = _keyed(secret_key, f"{when.year:04}{when.month:02}{when.day:02}", request.host, hash_name).copy()
    signing.update(_bytes(string_to_sign(request, hash_name)))
    return signing.hexdigest()


def verify(
    request: SignedRequest, credential: Credential, secret_key: str, when: datetime, *, scheme: str = "http"
) -> None:
    """Check a signature in constant time.

    Raises:
        NotAuthenticated: it does not match.
    """
    signature = _bytes(credential.signature)
    if hmac.compare_digest(sign(request, secret_key, when, credential.hash_name).encode(), signature):
        return
    if ":" not in request.host.rpartition("]")[2]:
        # Clients sign the port that their endpoint spells, while HTTP libraries leave the default one out of Host.
        spelled = msgspec.structs.replace(request, host=f"{request.host}:{443 if scheme == 'https' else 80}")
        if hmac.compare_digest(sign(spelled, secret_key, when, credential.hash_name).encode(), signature):
            return
    raise NotAuthenticated("the signature does not match")


def _media_type(header: str | None) -> str:
    if header is None:
        return "application/octet-stream"
    return header.partition(";")[0].strip().lower()


def _digest(hash_name: str, body: bytes) -> str:
    return hashlib.new(hash_name, body).hexdigest() if body else _digest_of_nothing(hash_name)


@functools.lru_cache(maxsize=len(HASHES))
def _digest_of_nothing(hash_name: str) -> str:
    return hashlib.new(hash_name).hexdigest()


@functools.lru_cache(maxsize=1024)
def _keyed(secret_key: str, day: str, host: str, hash_name: str) -> hmac.HMAC:
    """The key for one day and host, ready to sign: OpenSSL takes longer to find an algorithm than to use it."""
    key = _bytes(secret_key)
    for part in (day, host):
        key = hmac.digest(key, _bytes(part), hash_name)
    return hmac.new(key, digestmod=hash_name)


def _bytes(text: str) -> bytes:
    # aiohttp hands over undecodable header bytes as surrogates; they must fail the comparison, not us.
    return text.encode("utf-8", "surrogateescape")
