"""Session templates, and sessions of them (spec/rest-sessions.md §5, §15)."""

import re
from typing import Any

from aiohttp import hdrs, web

from roost.server.domain.templates import overlaid
from roost.server.domain.times import iso
from roost.server.http.context import answer, caller_of, owner_of, platform_of, version_of
from roost.server.http.params import Creation, NoParams, check, read_params
from roost.server.http.sessions import make_session
from roost.server.http.template_params import (
    NOT_OF_TEMPLATES,
    TemplateCreation,
    TemplateListing,
    TemplateReading,
    TemplateWriting,
    Written,
    read_templates,
)
from roost.server.services.templates import NewTemplate
from roost.server.store.templates import TemplateRow
from roost.wire.errors import InvalidParameters, TemplateNotFound

_OFFICIAL = re.compile(r"Backend\.AI Client for Python (\d+)\.(\d+)", re.ASCII)
_LISTS_SINCE = (23, 9)
"""The first official client that expects a list of what was created; API versions do not tell (§15)."""


async def create_from_template(request: web.Request) -> web.Response:
    """`POST /session/_/create-from-template`"""
    params = await read_params(request, TemplateCreation)
    params.config.check_version(version_of(request), but=NOT_OF_TEMPLATES)
    owner = await owner_of(request, params.owner_access_key)
    template: dict[str, Any] = {"config": {}}
    if params.template_id is not None:
        template = await platform_of(request).templates.creation(owner, str(params.template_id))
    return await make_session(request, check(overlaid(template, params.given()), Creation))


async def list_templates(request: web.Request) -> web.Response:
    """`GET /template/session`"""
    params = await read_params(request, TemplateListing)
    caller = caller_of(request)
    found = await platform_of(request).templates.list(caller, of_all=params.all, group_id=params.group_id)
    return answer([_item_view(row, is_owner=row.user_id == caller.user_id) for row in found])


async def create_templates(request: web.Request) -> web.Response:
    """`POST /template/session`"""
    params = await read_params(request, TemplateWriting)
    owner = await owner_of(request, params.owner_access_key)
    wanted = [_wanted(one) for one in read_templates(params.payload)]
    ids = await platform_of(request).templates.create(owner, params.domain, params.group, wanted)
    created = [{"id": _hex(id_), "user": _hex(owner.user_id)} for id_ in ids]
    return answer(created if _expects_list(request) else created[-1])


async def get_template(request: web.Request) -> web.Response:
    """`GET /template/session/{id}`; an empty object where there is none."""
    params = await read_params(request, TemplateReading)
    owner = await owner_of(request, params.owner_access_key)
    try:
        row = await platform_of(request).templates.get(owner, request.match_info["id"])
    except TemplateNotFound:
        return answer({})
    shown = {"template": row.template, "name": row.name, "user_uuid": row.user_id}
    return answer(shown | {"group_id": row.group_id, "domain_name": row.domain})


async def put_template(request: web.Request) -> web.Response:
    """`PUT /template/session/{id}`"""
    params = await read_params(request, TemplateWriting)
    owner = await owner_of(request, params.owner_access_key)
    written = read_templates(params.payload)
    if len(written) > 1:
        raise InvalidParameters(f"{len(written)} templates cannot take the place of one", hint="send one")
    group = (params.domain, params.group) if params.model_fields_set & {"domain", "group"} else None
    await platform_of(request).templates.replace(owner, request.match_info["id"], _wanted(written[0]), group)
    return answer({"success": True})


async def delete_template(request: web.Request) -> web.Response:
    """`DELETE /template/session/{id}`"""
    params = await read_params(request, NoParams)
    owner = await owner_of(request, params.owner_access_key)
    await platform_of(request).templates.delete(owner, request.match_info["id"])
    return answer({"success": True})


def _wanted(written: Written) -> NewTemplate:
    template = written.template.model_dump()
    template["spec"]["mounts"] = {name: target or "" for name, target in (template["spec"]["mounts"] or {}).items()}
    return NewTemplate(
        name=written.name or written.template.metadata.name,
        template=template,
        group_id=written.group_id,
        user_id=written.user_uuid,
    )


def _item_view(row: TemplateRow, *, is_owner: bool) -> dict[str, Any]:
    return {
        "name": row.name,
        "id": _hex(row.id),
        "created_at": iso(row.created_at).replace("T", " "),
        "is_owner": is_owner,
        "user": row.user_id,
        "group": row.group_id,
        "user_email": row.email,
        "group_name": row.group,
        "domain_name": row.domain,
        "type": "task",
        "template": row.template,
    }


def _expects_list(request: web.Request) -> bool:
    official = _OFFICIAL.match(request.headers.get(hdrs.USER_AGENT, ""))
    return official is not None and (int(official[1]), int(official[2])) >= _LISTS_SINCE


def _hex(id_: str) -> str:
    return id_.replace("-", "")
