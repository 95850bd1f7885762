"""Domains, groups, users and their key pairs; for now one of each, made at the first start."""

import uuid

import msgspec
from sqlalchemy import Connection

from roost.server.auth.secrets import SecretBox, hash_token, new_access_key, new_secret_key, new_token
from roost.server.store import accounts as rows
from roost.server.store.base import Store

ADMIN_EMAIL = "admin@localhost"
DEFAULT = "default"
"""The domain and the group that are always there."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What one can prove with that one is a user."""

    access_key: str
    secret_key: str
    token: str


async def ensure_admin(store: Store, box: SecretBox, token: str | None) -> Credentials:
    """The administrator's credentials; user, key pair and token are made where they are missing.

    Args:
        token: the token that `admin.json` holds; only its hash is stored, so a lost one is replaced.
    """
    account = await store.read(lambda c: rows.by_email(c, ADMIN_EMAIL))
    if account is None:
        made = Credentials(access_key=new_access_key(), secret_key=new_secret_key(), token=new_token())
        await store.write(lambda c: _add_admin(c, made, box))
        return made
    if token is None or hash_token(token) != account.token_hash:
        token = new_token()
        digest = hash_token(token)
        await store.write(lambda c: rows.set_token_hash(c, account.access_key, digest))
    return Credentials(access_key=account.access_key, secret_key=box.unlock(account.secret), token=token)


def _add_admin(connection: Connection, made: Credentials, box: SecretBox) -> None:
    user_id = str(uuid.uuid4())
    rows.add_domain(connection, DEFAULT)
    rows.add_group(connection, id=str(uuid.uuid4()), domain=DEFAULT, name=DEFAULT)
    rows.add_user(connection, id=user_id, email=ADMIN_EMAIL, role="superadmin", domain=DEFAULT)
    rows.add_keypair(
        connection,
        access_key=made.access_key,
        user_id=user_id,
        secret=box.lock(made.secret_key),
        token_hash=hash_token(made.token),
    )
