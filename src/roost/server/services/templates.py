"""Session templates: what a session is to be, kept under an id (spec/rest-sessions.md §5, §15)."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from roost.server.auth.base import Caller
from roost.server.domain.templates import creation_of
from roost.server.store import accounts
from roost.server.store import templates as rows
from roost.server.store.base import Store
from roost.server.store.templates import TemplateRow
from roost.wire.errors import Forbidden, InvalidParameters, TemplateNotFound


class NewTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """A template to be written down."""

    name: str
    template: Mapping[str, Any]
    group_id: str | None = None
    """None is the group of the request."""
    user_id: str | None = None
    """None is its owner."""


class Templates:
    """What can be done with templates. One belongs to a user; only they and administrators of everything see it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, owner: Caller, domain: str, group: str, wanted: Sequence[NewTemplate]) -> list[str]:
        """Write templates down; their ids.

        Raises:
            InvalidParameters: there is no such group.
            Forbidden: one is to be somebody else's.
        """
        made = [
            {
                "id": str(uuid.uuid4()),
                "user_id": owner.user_id,
                "group_id": await self._group_id(owner, domain, group, one),
                "name": one.name,
                "template": one.template,
                "created_at": time.time(),
            }
            for one in wanted
        ]

        def add_all(connection: Any) -> None:
            for values in made:
                rows.add(connection, **values)

        await self._store.write(add_all)
        return [str(values["id"]) for values in made]

    async def replace(self, owner: Caller, id_: str, wanted: NewTemplate, group: tuple[str, str] | None) -> None:
        """Write another one in the place of one.

        Args:
            group: domain and name of its new group; None leaves it where it is.

        Raises:
            TemplateNotFound: there is none of that id.
            InvalidParameters, Forbidden: as `create`.
        """
        found = await self.get(owner, id_)
        group_id = await self._group_id(owner, *(group or (found.domain, found.group)), wanted)
        await self._store.write(
            lambda c: rows.change(c, found.id, group_id=group_id, name=wanted.name, template=wanted.template)
        )

    async def delete(self, owner: Caller, id_: str) -> None:
        """Delete one; its row stays, since sessions were made of it.

        Raises:
            TemplateNotFound: there is none of that id.
        """
        found = await self.get(owner, id_)
        await self._store.write(lambda c: rows.change(c, found.id, deleted_at=time.time()))

    async def get(self, owner: Caller, id_: str) -> TemplateRow:
        """One of the owner's.

        Args:
            id_: a UUID, with or without hyphens.

        Raises:
            TemplateNotFound: there is none of that id.
        """
        try:
            key = str(uuid.UUID(id_))
        except ValueError:
            key = ""
        found = await self._store.read(lambda c: rows.get(c, key)) if key else None
        if found is None or (found.user_id != owner.user_id and owner.role != "superadmin"):
            raise TemplateNotFound(
                f"there is no session template {id_!r:.80}", hint="`backend.ai session-template list` lists yours"
            )
        return found

    async def list(self, caller: Caller, *, of_all: bool, group_id: str | None = None) -> list[TemplateRow]:
        """The caller's, or where an administrator of everything asks for it, those of all; the oldest first."""
        user_id = None if of_all and caller.role == "superadmin" else caller.user_id
        return await self._store.read(lambda c: rows.find(c, user_id, group_id))

    async def creation(self, owner: Caller, id_: str) -> dict[str, Any]:
        """The parameters of a creation that a template stands for.

        Raises:
            TemplateNotFound: there is none of that id.
        """
        found = await self.get(owner, id_)
        return creation_of(found.template, domain=found.domain, group=found.group)

    async def _group_id(self, owner: Caller, domain: str, group: str, wanted: NewTemplate) -> str:
        if wanted.user_id is not None and not _is_same(wanted.user_id, owner.user_id):
            raise Forbidden("a template is its owner's", hint="name the other's access key as owner_access_key")
        if domain != owner.domain and owner.role != "superadmin":
            raise InvalidParameters(f"not your domain: {domain!r:.80}", hint=f"yours is {owner.domain}")
        if wanted.group_id is None:
            found = await self._store.read(lambda c: accounts.group_id(c, domain, group))
            asked = f"group {group!r:.80} in domain {domain!r:.80}"
        else:
            found = await self._store.read(lambda c: accounts.group_of_id(c, domain, str(wanted.group_id)))
            asked = f"group of id {wanted.group_id!r:.80} in domain {domain!r:.80}"
        if found is None:
            raise InvalidParameters(f"there is no {asked}", hint="leave it out for the one that everybody has")
        return found


def _is_same(one: str, other: str) -> bool:
    return one.replace("-", "").lower() == other.replace("-", "")
