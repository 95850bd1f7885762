"""What happens around every handler: errors become problems, versions are checked, callers are recognised."""

import traceback

import structlog
from aiohttp import hdrs, web

from roost.server.auth.base import Presented
from roost.server.http.context import (
    CALLER,
    STRANGERS,
    VERSION,
    Handler,
    is_public,
    is_streaming,
    platform_of,
    room_of,
    room_to_send,
)
from roost.server.http.memory import NO_ROOM, bytes_of_body, is_large, is_large_answer
from roost.server.http.problems import problem, problem_of
from roost.wire.errors import NotAuthenticated, RoostError
from roost.wire.versions import ACCEPTED_VERSIONS

NO_LIMIT = 2_147_483_647
"""What an administrator's rate limit is shown as."""
WINDOW_S = 900
UNAUTHORIZED_LIMIT = 1000
VERSION_IF_SILENT = "v5.20191215"
"""What a request without a version header speaks (spec/auth.md §1.3)."""

_DOING = {hdrs.METH_DELETE: "kernel-destruction-failed", hdrs.METH_PATCH: "kernel-restart-failed"}

BEGUN = web.RequestKey("begun", web.StreamResponse)
"""The answer of a request, once it is on its way."""
CLIENT_IS_GONE = 499
"""What is answered when nobody hears it; nginx's number for that."""

log = structlog.get_logger(__name__)


@web.middleware
async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error with a problem document."""
    try:
        return await handler(request)
    except RoostError as error:
        return problem_of(error, doing=_DOING.get(request.method, "kernel-execution-failed"))
    except web.HTTPNotFound:
        return problem("generic-not-found", "There is no such path.", msg=f"no such path: {request.path}")
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        refused = problem("method-not-allowed", "This path has no such method.", hint=f"it has {allowed}")
        refused.headers[hdrs.ALLOW] = allowed
        return refused
    except web.HTTPRequestEntityTooLarge:
        hint = "send files of any size with PUT /session/{ref}/files/{path}"
        return problem("generic-bad-request", "The request cannot be handled.", msg="the body is too large", hint=hint)
    except web.HTTPException as error:
        return problem("generic-bad-request", "The request cannot be handled.", msg=error.reason)
    except web.RequestPayloadError as error:
        _forget(error)
        refused = problem("generic-bad-request", "The request cannot be handled.", msg=f"the body is broken: {error}")
        await refused.prepare(request)
        await refused.write_eof()
        request.protocol.force_close()  # or aiohttp waits for the rest of the body, and logs that it is broken
        return refused
    except ConnectionError as error:
        if request.transport is not None and not request.transport.is_closing():
            raise
        _forget(error)
        # There is nobody to answer, and nothing to complain of: aiohttp finds out in silence that this goes nowhere.
        return request.pop(BEGUN, None) or web.Response(status=CLIENT_IS_GONE)
    except Exception:  # the last border: the client gets an answer, and we a record
        log.exception("request.failed", method=request.method, path=request.path)
        return problem("internal-server-error", "Something went wrong in the server.", hint="its log says what")


def _forget(error: Exception) -> None:
    """Let go of what was sent or read when a connection broke.

    The error and the stream of aiohttp's that told it hold each other, and with them every variable on the way.
    """
    traceback.clear_frames(error.__traceback__)


@web.middleware
async def break_off(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Close the connection of an answer that has begun and cannot go on: no problem document fits behind it."""
    try:
        return await handler(request)
    except ConnectionError:
        raise
    except Exception as error:
        if BEGUN not in request:
            raise
        log.exception("answer.broken_off", method=request.method, path=request.path)
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the answer was broken off") from error


@web.middleware
async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let in what we can read, from whom the handler wants to hear."""
    refused = _refuse_encoding(request) or _refuse_version(request)
    if refused is not None:
        return refused
    if request.match_info.http_exception is None and not is_public(request.match_info.handler):
        await _authenticate(request)
        is_counted = is_large(request) and not is_streaming(request.match_info.handler)
        with room_of(request) if is_counted else NO_ROOM as room:
            if room is not None:
                await room.wait(bytes_of_body(request))
                room.take(len(await request.read()))
            response = await handler(request)
            if not response.prepared and is_large_answer(response):
                with room_to_send(request, response):
                    await response.prepare(request)
                    await response.write_eof()
            return response
    return await handler(request)


def _refuse_encoding(request: web.Request) -> web.Response | None:
    """Refuse packed bodies: a few kilobytes may stand for gigabytes, and unpacking them would keep all others waiting.

    The server is told to leave them packed, also where it reads one for nobody before it closes a connection.
    """
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity")
    if encoding.lower() == "identity":
        return None
    return problem(
        "generic-bad-request",
        "The request cannot be handled.",
        msg=f"bodies are not unpacked here: Content-Encoding {encoding!r:.40}",
        hint="send the body as it is",
    )


def _refuse_version(request: web.Request) -> web.Response | None:
    headers = request.headers
    version = headers.get("X-BackendAI-Version") or headers.get("X-Sorna-Version") or VERSION_IF_SILENT
    if version not in ACCEPTED_VERSIONS:
        return problem(
            "generic-bad-request",
            "This API version is not supported.",
            msg=f"unsupported API version {version!r:.80}",
            hint=f"the versions here are {', '.join(ACCEPTED_VERSIONS)}",
        )
    request[VERSION] = version
    return None


async def _authenticate(request: web.Request) -> None:
    presented = Presented(
        method=request.method,
        target=request.raw_path,
        headers=request.headers,
        scheme=request.scheme,
        version=request[VERSION],
    )
    for authenticator in platform_of(request).authenticators:
        caller = await authenticator.authenticate(presented)
        if caller is not None:
            request[CALLER] = caller
            request.app[STRANGERS].recognise(request.protocol)
            return
    raise NotAuthenticated("no credentials were sent", hint="sign the request, or send a bearer token")


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """The headers that every response carries (spec/auth.md §1.1, §3)."""
    request[BEGUN] = response
    limit = NO_LIMIT if CALLER in request else UNAUTHORIZED_LIMIT
    response.headers["Server"] = "BackendAI"
    response.headers["X-RateLimit-Limit"] = response.headers["X-RateLimit-Remaining"] = str(limit)
    response.headers["X-RateLimit-Window"] = str(WINDOW_S)
