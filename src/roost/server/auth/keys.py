"""The key pairs and tokens that callers prove who they are with, as the store knows them."""

from typing import TypeVar

from roost.server.auth.base import Caller
from roost.server.auth.secrets import SecretBox, hash_token
from roost.server.store import accounts
from roost.server.store.accounts import Account
from roost.server.store.base import Store
from roost.wire.errors import Forbidden, InvalidParameters, NotAuthenticated

_CACHED = 4096

K = TypeVar("K")
V = TypeVar("V")


class KeyRing:
    """Looks up key pairs; what was found is remembered: nothing changes a key pair yet."""

    def __init__(self, store: Store, box: SecretBox) -> None:
        self._store = store
        self._box = box
        self._by_key: dict[str, tuple[Caller, str]] = {}
        self._by_token: dict[str, Caller] = {}

    async def pair(self, access_key: str) -> tuple[Caller, str]:
        """Whose an access key is, and its secret key.

        Raises:
            NotAuthenticated: it is unknown or inactive.
        """
        known = self._by_key.get(access_key)
        if known is None:
            account = await self._store.read(lambda c: accounts.by_access_key(c, access_key))
            known = (_caller(account, "access key"), self._box.unlock(account.secret)) if account else None
            if known is None:
                raise NotAuthenticated("unknown access key")
            _remember(self._by_key, access_key, known)
        return known

    async def bearer(self, token: str) -> Caller:
        """Whose a token is.

        Raises:
            NotAuthenticated: it is unknown or inactive.
        """
        digest = hash_token(token)
        known = self._by_token.get(digest)
        if known is None:
            account = await self._store.read(lambda c: accounts.by_token_hash(c, digest))
            if account is None:
                raise NotAuthenticated("unknown token")
            known = _caller(account, "token")
            _remember(self._by_token, digest, known)
        return known

    async def owner(self, caller: Caller, access_key: str | None) -> Caller:
        """Whom a caller acts for (spec/rest-sessions.md §1.3): itself, if no other access key is named.

        Raises:
            InvalidParameters: the key is unknown.
            Forbidden: the caller may not act for its owner.
        """
        if access_key is None or access_key == caller.access_key:
            return caller
        try:
            owner, _ = await self.pair(access_key)
        except NotAuthenticated:
            raise InvalidParameters(
                f"unknown owner access key {access_key!r:.80}", hint="leave it out to act for yourself"
            ) from None
        if caller.role == "superadmin":
            return owner
        if caller.role == "admin" and caller.domain == owner.domain and owner.role != "superadmin":
            return owner
        raise Forbidden("you may not act on behalf of this user")


def _caller(account: Account, what: str) -> Caller:
    if not account.is_active:
        raise NotAuthenticated(f"this {what} is not active")
    return Caller(
        access_key=account.access_key,
        user_id=account.user_id,
        email=account.email,
        role=account.role,
        domain=account.domain,
    )


def _remember(cache: dict[K, V], key: K, value: V) -> None:
    if len(cache) >= _CACHED:
        cache.clear()
    cache[key] = value
