"""The ways to say who one is: a signature by a key pair, or a bearer token."""

from collections.abc import Callable
from datetime import UTC, datetime

from roost.server.auth.base import Authenticator, Caller, Presented
from roost.server.auth.keys import KeyRing
from roost.server.auth.signing import SignedRequest, parse_authorization, parse_date, verify
from roost.wire.errors import InvalidAuthParameters


def utc_now() -> datetime:
    return datetime.now(UTC)


class BearerAuthenticator(Authenticator):
    """`Authorization: Bearer <token>`."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    async def authenticate(self, request: Presented) -> Caller | None:
        scheme, _, token = request.headers.get("Authorization", "").strip().partition(" ")
        if scheme.lower() != "bearer":
            return None
        return await self._keys.bearer(token.strip())


class SignatureAuthenticator(Authenticator):
    """A request signed as spec/auth.md §2 says."""

    def __init__(self, keys: KeyRing, clock: Callable[[], datetime] = utc_now) -> None:
        self._keys = keys
        self._clock = clock

    async def authenticate(self, request: Presented) -> Caller | None:
        headers = request.headers
        date = headers.get("Date", headers.get("X-BackendAI-Date", headers.get("X-Sorna-Date", "")))
        # The date is checked before any credential, also where there is none (spec/auth.md §2.2).
        when = parse_date(date, self._clock())
        authorization = headers.get("Authorization")
        if authorization is None:
            return None
        if "X-BackendAI-Version" not in headers and "X-Sorna-Version" not in headers:
            raise InvalidAuthParameters("the X-BackendAI-Version header is missing")
        credential = parse_authorization(authorization)
        caller, secret_key = await self._keys.pair(credential.access_key)
        legacy = "X-BackendAI-Version" not in headers and "X-Sorna-Version" in headers
        signed = SignedRequest(
            method=request.method,
            target=request.target,
            date=date,
            host=headers.get("Host", ""),
            content_type=headers.get("Content-Type"),
            version=request.version,
            version_header="x-sorna-version" if legacy else "x-backendai-version",
        )
        verify(signed, credential, secret_key, when, scheme=request.scheme)
        return caller
