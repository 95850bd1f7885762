"""Rows of domains, groups, users and key pairs; each function is work for `Store.read` or `Store.write`."""

from typing import Any

import msgspec
import sqlalchemy as sa

from roost.server.store.tables import domains, groups, keypairs, users


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A key pair and the user that it belongs to."""

    access_key: str
    secret: bytes
    """Encrypted (`auth/secrets.py`)."""
    token_hash: str | None
    is_active: bool
    user_id: str
    email: str
    role: str
    domain: str


def add_domain(connection: sa.Connection, name: str) -> None:
    connection.execute(domains.insert().values(name=name))


def add_group(connection: sa.Connection, **values: Any) -> None:
    connection.execute(groups.insert().values(values))


def group_id(connection: sa.Connection, domain: str, name: str) -> str | None:
    query = sa.select(groups.c.id).where(groups.c.domain == domain, groups.c.name == name)
    found: str | None = connection.execute(query).scalar_one_or_none()
    return found


def group_of_id(connection: sa.Connection, domain: str, id_: str) -> str | None:
    """The id itself, where the domain has such a group."""
    query = sa.select(groups.c.id).where(groups.c.domain == domain, groups.c.id == id_)
    found: str | None = connection.execute(query).scalar_one_or_none()
    return found


def add_user(connection: sa.Connection, **values: Any) -> None:
    connection.execute(users.insert().values(values))


def add_keypair(connection: sa.Connection, **values: Any) -> None:
    connection.execute(keypairs.insert().values(values))


def set_token_hash(connection: sa.Connection, access_key: str, token_hash: str) -> None:
    connection.execute(keypairs.update().where(keypairs.c.access_key == access_key).values(token_hash=token_hash))


def by_access_key(connection: sa.Connection, access_key: str) -> Account | None:
    return _one(connection, keypairs.c.access_key == access_key)


def by_token_hash(connection: sa.Connection, token_hash: str) -> Account | None:
    return _one(connection, keypairs.c.token_hash == token_hash)


def by_email(connection: sa.Connection, email: str) -> Account | None:
    """The user's first key pair, where there is one."""
    return _one(connection, users.c.email == email)


def _one(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> Account | None:
    user = (users.c.email, users.c.role, users.c.domain)
    pair = (keypairs.c.access_key, keypairs.c.secret, keypairs.c.token_hash, keypairs.c.is_active, keypairs.c.user_id)
    query = sa.select(*pair, *user).join(users, users.c.id == keypairs.c.user_id).where(condition).limit(1)
    row = connection.execute(query).one_or_none()
    return Account(**row._mapping) if row is not None else None
