"""Sessions over REST (spec/rest-sessions.md §4, §8; docs/protocol/http.md)."""

import hashlib

import orjson
from aiohttp import web

from roost.server.http.context import answer, caller_of, idempotency_key, owner_of, platform_of, session_of, version_of
from roost.server.http.params import (
    Creation,
    Destruction,
    Listing,
    Matching,
    NoParams,
    Renaming,
    read_json,
    read_params,
)
from roost.server.http.views import dependency_view, happening_view, info_view, session_view, stats_view
from roost.server.services.accounts import DEFAULT
from roost.server.services.sessions import Created, Wanted
from roost.server.store.idempotency import Once
from roost.wire.errors import (
    FolderNotFound,
    InsufficientPrivilege,
    InvalidParameters,
    LimitExceeded,
    ScalingGroupNotFound,
)
from roost.wire.sessions import SessionState, SessionType


async def create_session(request: web.Request) -> web.Response:
    """`POST /session`"""
    params = await read_params(request, Creation)
    params.config.check_version(version_of(request))
    return await make_session(request, params)


async def make_session(request: web.Request, params: Creation) -> web.Response:
    """Create what a request has asked for."""
    owner = await owner_of(request, params.owner_access_key)
    config = params.config
    if config.agent_list and caller_of(request).role != "superadmin":
        raise InsufficientPrivilege("only a super-admin chooses agents", hint="leave config.agentList out")
    _refuse_what_is_not_here(params)
    wanted = Wanted(
        name=params.session_name,
        image=params.image,
        architecture=params.architecture,
        resources=config.resources or {},
        resource_opts=config.resource_opts or {},
        type=SessionType(params.type),
        startup_command=params.startup_command,
        starts_at=params.starts_at,
        bootstrap_script=params.bootstrap_script,
        callback_url=params.callback_url or None,
        dependencies=tuple(params.dependencies or ()),
        environ=config.environ or {},
        tag=params.tag,
        node_id=_chosen_node(config.agent_list),
        domain=params.domain,
        group=params.group,
        reuse=params.reuse,
        enqueue_only=params.enqueue_only,
        max_wait_s=params.max_wait_seconds or None,
        once=await _once(request),
    )
    created = await platform_of(request).sessions.create(owner, wanted)
    return answer(_creation_view(created, version_of(request)), 201 if created.created else 200)


async def list_sessions(request: web.Request) -> web.Response:
    """`GET /session`: the owner's sessions, newest first."""
    params = await read_params(request, Listing)
    owner = await owner_of(request)
    found = await platform_of(request).sessions.list(owner, _states(params.status))
    return answer([session_view(session) for session in found])


async def match_sessions(request: web.Request) -> web.Response:
    """`GET /session/_/match`: what a reference may be completed to."""
    params = await read_params(request, Matching)
    owner = await owner_of(request)
    found = await platform_of(request).sessions.match(owner, params.id)
    return answer({"matches": [{"id": one.id, "name": one.name, "status": one.state.value} for one in found]})


async def rename_session(request: web.Request) -> web.Response:
    """`POST /session/{ref}/rename`"""
    params = await read_params(request, Renaming)
    session = await session_of(request, params.owner_access_key, dead_too=True)
    await platform_of(request).sessions.rename(session, params.session_name)
    return web.Response(status=204)


async def get_session(request: web.Request) -> web.Response:
    """`GET /session/{ref}`"""
    owner = await owner_of(request)
    platform = platform_of(request)
    session = await platform.sessions.find(owner, request.match_info["ref"])
    runs = len(await platform.runs.list(session))
    return answer(info_view(session, user_id=owner.user_id, domain=owner.domain, runs=runs))


async def restart_session(request: web.Request) -> web.Response:
    """`PATCH /session/{ref}`"""
    params = await read_params(request, NoParams)
    session = await session_of(request, params.owner_access_key)
    await platform_of(request).sessions.restart(session)
    return web.Response(status=204)


async def destroy_session(request: web.Request) -> web.Response:
    """`DELETE /session/{ref}`"""
    params = await read_params(request, Destruction)
    session = await session_of(request, params.owner_access_key)
    sessions = platform_of(request).sessions
    if params.recursive:
        ended = await sessions.destroy_with_dependents(session, forced=params.forced)
        return answer([{"stats": stats_view(one, stats)} for one, stats in ended])
    return answer({"stats": stats_view(session, await sessions.destroy(session, forced=params.forced))})


async def get_dependency_graph(request: web.Request) -> web.Response:
    """`GET /session/{ref}/dependency-graph`; of ended sessions too."""
    params = await read_params(request, NoParams)
    session = await session_of(request, params.owner_access_key, dead_too=True)
    return answer(dependency_view(await platform_of(request).sessions.dependency_graph(session)))


async def get_history(request: web.Request) -> web.Response:
    """`GET /session/{ref}/history`: what happened to a session, live or not."""
    session = await session_of(request, dead_too=True)
    return answer([happening_view(one) for one in await platform_of(request).sessions.history(session)])


async def get_logs(request: web.Request) -> web.Response:
    """`GET /session/{ref}/logs`: what its programs wrote; also after its end."""
    params = await read_params(request, NoParams)
    session = await session_of(request, params.owner_access_key, dead_too=True)
    return answer({"result": {"logs": await platform_of(request).runs.log_text(session)}})


async def _once(request: web.Request) -> Once | None:
    """The request's key, and what the request is: its parameters, whatever their order in the text."""
    key = idempotency_key(request)
    if key is None:
        return None
    parameters = await read_json(request) if await request.read() else dict(request.query)
    body = orjson.dumps(parameters, option=orjson.OPT_SORT_KEYS)
    return Once(key=key, fingerprint=hashlib.sha256(body).hexdigest())


def _refuse_what_is_not_here(params: Creation) -> None:
    """Say no to what this server does not do, rather than drop it silently."""
    config = params.config
    if max(params.cluster_size, config.cluster_size or 1) > 1:
        raise LimitExceeded("a session has one container here", hint="leave the cluster size at 1")
    if folders := [*(config.mounts or ()), *(config.mount_map or ())]:
        raise FolderNotFound(f"there are no folders {', '.join(folders)}", data=folders)
    if config.scaling_group not in (None, DEFAULT):
        raise ScalingGroupNotFound(
            f"there is no scaling group {config.scaling_group!r:.80}", hint="leave config.scalingGroup out"
        )
    asked = {
        "type": params.type if params.type == "inference" else None,
        "config.preopen_ports": config.preopen_ports,
    }
    for name, value in asked.items():
        if value:
            raise InvalidParameters(f"{name} is not available on this server", hint=f"leave {name} out")


def _chosen_node(agents: list[str] | None) -> str | None:
    """Official clients send an empty list where nothing was chosen (§4.2)."""
    if not agents:
        return None
    if len(agents) > 1:
        raise InvalidParameters("a session of one container has one agent", hint="name one in config.agentList")
    return agents[0]


def _creation_view(created: Created, version: tuple[int, str]) -> dict[str, object]:
    session = created.session
    status = "TIMEOUT" if created.timed_out else session.state.value
    names: dict[str, object] = {"sessionId": session.id, "sessionName": session.name}
    if version < (5, ""):
        names = {"kernelId": session.name, **names}
    view = names | {"status": status, "servicePorts": [], "service_ports": [], "created": created.created}
    if session.reason is not None:
        view["reason"] = session_view(session)["reason"]
    return view


def _states(text: str | None) -> list[SessionState]:
    if text is None:
        return [state for state in SessionState if state.is_live]
    if text == "all":
        return list(SessionState)
    try:
        return [SessionState(name.strip().upper()) for name in text.split(",")]
    except ValueError:
        names = ", ".join(SessionState)
        raise InvalidParameters(f"not a status: {text!r}", hint=f"`all`, or some of {names}") from None
