"""Rows of session templates; each function is work for `Store.read` or `Store.write`."""

from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from roost.server.store.tables import groups, session_templates, users


class TemplateRow(msgspec.Struct, frozen=True, kw_only=True):
    """A session template, with the names of what it belongs to."""

    id: str
    user_id: str
    email: str
    domain: str
    group_id: str
    group: str
    name: str
    template: Mapping[str, Any]
    created_at: float


def add(connection: sa.Connection, **values: Any) -> None:
    """Write one down: `id`, `user_id`, `group_id`, `name`, `template`, `created_at`."""
    connection.execute(session_templates.insert().values(values))


def change(connection: sa.Connection, id_: str, **values: Any) -> None:
    """Give one other values."""
    connection.execute(session_templates.update().where(session_templates.c.id == id_).values(values))


def get(connection: sa.Connection, id_: str) -> TemplateRow | None:
    """The one of an id; None where there is none, or where it was deleted."""
    rows = _found(connection, session_templates.c.id == id_)
    return rows[0] if rows else None


def find(connection: sa.Connection, user_id: str | None, group_id: str | None) -> list[TemplateRow]:
    """Those of a user and a group, or of all where one is None; the oldest first."""
    wanted = [
        column == value
        for column, value in ((session_templates.c.user_id, user_id), (session_templates.c.group_id, group_id))
        if value is not None
    ]
    return _found(connection, *wanted)


def _found(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> list[TemplateRow]:
    columns = session_templates.c
    query = (
        sa.select(
            columns.id,
            columns.user_id,
            users.c.email,
            groups.c.domain,
            columns.group_id,
            groups.c.name.label("group"),
            columns.name,
            columns.template,
            columns.created_at,
        )
        .join(users, users.c.id == columns.user_id)
        .join(groups, groups.c.id == columns.group_id)
        .where(columns.deleted_at.is_(None), *conditions)
        .order_by(columns.created_at, columns.id)
    )
    return [TemplateRow(**row._mapping) for row in connection.execute(query)]
