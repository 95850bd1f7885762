"""Rows of images with packages, and of aliases; each function is work for `Store.read` or `Store.write`."""

from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from roost.server.store.tables import LIVE, image_aliases, images, sessions


class ImageRow(msgspec.Struct, frozen=True, kw_only=True):
    """An image with packages, as it is written down."""

    reference: str
    base: str
    """The reference of the host image below it."""
    architecture: str
    interpreter: Mapping[str, Any]
    digest: str
    """That of its environment."""
    requirements: str
    lock: str
    labels: Mapping[str, str]
    size_bytes: int
    created_at: float


def every(connection: sa.Connection) -> list[ImageRow]:
    """All of them, by reference."""
    return [ImageRow(**row._mapping) for row in connection.execute(sa.select(images).order_by(images.c.reference))]


def put(connection: sa.Connection, row: ImageRow) -> None:
    """Write one down, in the place of another of that reference."""
    connection.execute(images.delete().where(images.c.reference == row.reference))
    connection.execute(images.insert().values(msgspec.structs.asdict(row)))


def delete(connection: sa.Connection, reference: str) -> None:
    """Forget one."""
    connection.execute(images.delete().where(images.c.reference == reference))


def aliases(connection: sa.Connection) -> dict[str, str]:
    """What each alias names."""
    return {alias: target for alias, target in connection.execute(sa.select(image_aliases))}


def put_alias(connection: sa.Connection, alias: str, target: str) -> None:
    """Let an alias name something, whatever it named before."""
    delete_alias(connection, alias)
    connection.execute(image_aliases.insert().values(alias=alias, target=target))


def delete_alias(connection: sa.Connection, alias: str) -> None:
    """Forget an alias."""
    connection.execute(image_aliases.delete().where(image_aliases.c.alias == alias))


def environments_in_use(connection: sa.Connection) -> dict[str, list[str]]:
    """The digests that live sessions need, each with the names of those sessions."""
    found: dict[str, list[str]] = {}
    for name, spec in connection.execute(sa.select(sessions.c.name, sessions.c.spec).where(sa.text(LIVE))):
        if digest := spec.get("environment"):
            found.setdefault(digest, []).append(name)
    return found
