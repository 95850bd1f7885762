"""What every handler needs of its request: the platform, the caller, the session."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import orjson
from aiohttp import web

from roost.server.auth.base import Caller
from roost.server.domain.sessions import Session
from roost.server.http.memory import NO_ROOM, Memory, Room, bytes_of_answer, is_large_answer
from roost.server.http.strangers import Strangers
from roost.server.services.platform import Platform
from roost.wire.errors import InvalidParameters, TooMuchHeld
from roost.wire.versions import parse_version

PLATFORM = web.AppKey("platform", Platform)
MEMORY = web.AppKey("memory", Memory)
STRANGERS = web.AppKey("strangers", Strangers)
CALLER = web.RequestKey("caller", Caller)
VERSION = web.RequestKey("version", str)

MAX_KEY = 255

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
H = TypeVar("H", bound=Handler)

_PUBLIC: set[Handler] = set()
_STREAMING: set[Handler] = set()


def public(handler: H) -> H:
    """Mark a handler that needs no credentials."""
    _PUBLIC.add(handler)
    return handler


def streams(handler: H) -> H:
    """Mark a handler that reads the body itself, piece by piece."""
    _STREAMING.add(handler)
    return handler


def is_streaming(handler: Any) -> bool:
    return handler in _STREAMING


def is_public(handler: Any) -> bool:
    return handler in _PUBLIC


def platform_of(request: web.Request) -> Platform:
    return request.app[PLATFORM]


def caller_of(request: web.Request) -> Caller:
    return request[CALLER]


def version_of(request: web.Request) -> tuple[int, str]:
    """The API version that the request speaks."""
    return parse_version(request[VERSION])


def room_of(request: web.Request) -> Room:
    """Room in the server's memory, for what the request holds of it."""
    return request.app[MEMORY].room(caller_of(request).access_key)


def room_to_send(request: web.Request, response: web.StreamResponse) -> AbstractContextManager[Room | None]:
    """Room for an answer that is made and will be sent; its reader may take its time.

    Raises:
        TooMuchHeld: there is none now. To wait for it would hold the answer all the same.
    """
    if not is_large_answer(response):
        return NO_ROOM
    room = room_of(request)
    if not room.take(bytes_of_answer(response.content_length or 0)):
        raise TooMuchHeld
    return room


async def owner_of(request: web.Request, access_key: str | None = None) -> Caller:
    """Whom the request acts for: named in the query first, then by a parameter, else the caller."""
    named = request.query.get("owner_access_key") or access_key or None
    return await platform_of(request).keys.owner(caller_of(request), named)


async def session_of(request: web.Request, access_key: str | None = None, *, dead_too: bool = False) -> Session:
    """The session that the path names."""
    owner = await owner_of(request, access_key)
    return await platform_of(request).sessions.find(owner, request.match_info["ref"], dead_too=dead_too)


def idempotency_key(request: web.Request) -> str | None:
    """What tells a request that is sent again from another one; None where the client did not say.

    Raises:
        InvalidParameters: it is none.
    """
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
        raise InvalidParameters(
            "Idempotency-Key cannot be used", hint=f"1 to {MAX_KEY} printable ASCII characters, such as a UUID"
        )
    return key


def answer(body: Any, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", charset="utf-8")
