"""Session templates (spec/client-sdk.md §8)."""

from typing import Any, Self
from urllib.parse import quote

from roost.client.active import current_session
from roost.client.func.base import BaseFunction, api_function
from roost.client.request import Request

__all__ = ("SessionTemplate",)


class SessionTemplate(BaseFunction):
    """What sessions are to be, kept by the server under an id."""

    def __init__(self, template_id: str, owner_access_key: str | None = None) -> None:
        self.template_id = template_id
        self.owner_access_key = owner_access_key

    @api_function
    @classmethod
    async def create(
        cls,
        template: str,
        domain_name: str | None = None,
        group_name: str | None = None,
        owner_access_key: str | None = None,
    ) -> Self:
        """Write a template down; of several in one text, the last is returned.

        Args:
            template: YAML or JSON (spec/rest-sessions.md §15); the server reads it.
        """
        config = current_session().config
        request = Request("POST", "/template/session")
        request.set_json(
            {
                "payload": template,
                "domain": domain_name if domain_name is not None else config.domain,
                "group": group_name if group_name is not None else config.group,
                "owner_access_key": owner_access_key,
            }
        )
        async with request.fetch() as response:
            created = await response.json()
        last = created[-1] if isinstance(created, list) else created  # servers since 23.09 tell all of them
        return cls(last["id"], owner_access_key)

    @api_function
    @classmethod
    async def list_templates(cls, list_all: bool = False) -> list[dict[str, Any]]:
        """The caller's templates; with `list_all` those of everybody, where an administrator asks."""
        request = Request("GET", "/template/session")
        request.set_json({"all": list_all})
        async with request.fetch() as response:
            return list(await response.json())

    @api_function
    async def get(self, body_format: str = "yaml") -> str:
        """The template as the server's text, which is JSON whatever the format; `{}` where there is none."""
        params = {"format": body_format, **self._params()}
        async with Request("GET", self._path(), params=params).fetch() as response:
            return await response.text()

    @api_function
    async def put(self, template: str) -> Any:
        """Write another template in its place."""
        request = Request("PUT", self._path())
        request.set_json({"payload": template} | self._params())
        async with request.fetch() as response:
            return await response.json()

    @api_function
    async def delete(self) -> Any:
        """Delete it."""
        async with Request("DELETE", self._path(), params=self._params()).fetch() as response:
            return await response.json()

    def _path(self) -> str:
        return f"/template/session/{quote(self.template_id, safe='')}"

    def _params(self) -> dict[str, str]:
        return {"owner_access_key": self.owner_access_key} if self.owner_access_key else {}
