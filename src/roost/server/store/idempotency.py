"""Which creation an `Idempotency-Key` stands for; each function is work for `Store.read` or `Store.write`."""

import msgspec
import sqlalchemy as sa

from roost.server.store.tables import idempotency_keys

KEPT_S = 24 * 3600.0
"""How long a key is remembered."""


class Once(msgspec.Struct, frozen=True, kw_only=True):
    """A request that is to be done once, however often it is sent."""

    key: str
    fingerprint: str
    """Of the request itself, hexadecimal."""


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What came of such a request."""

    fingerprint: str
    session_id: str
    created: bool
    """Whether the session was made for it; False where it was there."""


class KeyTaken(Exception):
    """This key was used meanwhile."""


def find(connection: sa.Connection, access_key: str, key: str, now: float) -> Done | None:
    """What came of a request of this key; None where none is remembered."""
    columns = idempotency_keys.c
    query = sa.select(columns.fingerprint, columns.session_id, columns.created)
    query = query.where(columns.access_key == access_key, columns.key == key, columns.at > now - KEPT_S)
    row = connection.execute(query).one_or_none()
    return Done(**row._mapping) if row is not None else None


def remember(
    connection: sa.Connection, access_key: str, once: Once, session_id: str, created: bool, now: float
) -> None:
    """Write down what came of a request, and forget what is too old.

    Raises:
        KeyTaken: there is something of this key.
    """
    connection.execute(idempotency_keys.delete().where(idempotency_keys.c.at <= now - KEPT_S))
    row = {"access_key": access_key, "session_id": session_id, "created": created, "at": now}
    try:
        connection.execute(idempotency_keys.insert().values(row | msgspec.structs.asdict(once)))
    except sa.exc.IntegrityError as error:
        raise KeyTaken from error
