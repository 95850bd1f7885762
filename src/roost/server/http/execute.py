"""The compatible way to run code: start, poll, answer (spec/execution.md §2 to §6)."""

import asyncio
from typing import Any

from aiohttp import web

from roost.server.domain.sessions import Session
from roost.server.http.context import answer, platform_of, session_of
from roost.server.http.deliveries import Deliveries
from roost.server.http.params import read_json
from roost.server.services.runs import Polled
from roost.wire.errors import InvalidParameters, RunNotFound

DELIVERIES: web.AppKey[Deliveries] = web.AppKey("deliveries", Deliveries)

MODES = ("query", "continue", "input", "user-input")


async def execute(request: web.Request) -> web.StreamResponse:
    """`POST /session/{ref}`: start a run, or go on with one, and answer with its next part."""
    run_id, mode, code = _read(await read_json(request))
    after = _after(request)
    session = await session_of(request)
    runs = platform_of(request).runs
    if mode == "query":
        run_id = (await runs.start(session, code, run_id=run_id)).run_id
    assert run_id is not None
    try:
        if mode in ("input", "user-input"):
            await runs.feed(session, run_id, prompt=None, text=code)
        await request.app[DELIVERIES].settle(session.id, run_id, _transport_of(request))
        polled = await runs.poll(session, run_id, after=after)
    except RunNotFound as error:
        raise InvalidParameters(error.message, hint="start it with mode `query`") from None
    return await _deliver(request, session, polled)


async def interrupt(request: web.Request) -> web.Response:
    """`POST /session/{ref}/interrupt`"""
    session = await session_of(request)
    await platform_of(request).runs.interrupt(session)
    return web.Response(status=204)


async def _deliver(request: web.Request, session: Session, polled: Polled) -> web.StreamResponse:
    """Write the answer, and move the run's cursor only then: a crash in between repeats and never loses."""
    response = answer({"result": _result_view(polled)})
    response.headers["X-Roost-Seq"] = str(polled.seq)
    transport = _transport_of(request)
    await request.app[DELIVERIES].deliver(session, polled, transport, _write(request, response))
    return response


async def _write(request: web.Request, response: web.Response) -> bool:
    await response.prepare(request)
    await response.write_eof()
    return bool(response.keep_alive)


def _transport_of(request: web.Request) -> asyncio.Transport:
    if request.transport is None:
        raise ConnectionResetError("the client is gone")
    return request.transport


def _after(request: web.Request) -> int | None:
    """What the client says that it has; None where it says nothing."""
    text = request.headers.get("X-Roost-After")
    if text is not None and not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidParameters(f"X-Roost-After must be a sequence number, not {text!r:.40}")
    return int(text) if text is not None else None


def _read(body: Any) -> tuple[str | None, str, str]:
    """Run id, mode and code, checked (§2)."""
    if not isinstance(body, dict):
        raise InvalidParameters("the body must be a JSON object")
    if "runId" not in body:
        raise InvalidParameters("runId is missing", hint="send null to let the server choose one")
    run_id, mode, code = body["runId"], body.get("mode"), body.get("code")
    if not mode:
        raise InvalidParameters("mode is missing or empty", hint=f"one of {', '.join(MODES)}")
    if mode not in MODES:
        raise InvalidParameters(f"mode {mode!r:.80} is not available", hint=f"one of {', '.join(MODES)}")
    if run_id is None and mode != "query":
        raise InvalidParameters(f"mode {mode} needs the runId of a run")
    if not isinstance(run_id, str | None):
        raise InvalidParameters("runId must be a text or null")
    if not isinstance(code, str | None):
        raise InvalidParameters("code must be a text or null")
    if not isinstance(body.get("options"), dict | None):
        raise InvalidParameters("options must be an object or null")
    return run_id, mode, code or ""


def _result_view(polled: Polled) -> dict[str, Any]:
    return {
        "runId": polled.run_id,
        "status": polled.status,
        "exitCode": polled.exit_code,
        "options": polled.options,
        "files": [],
        "console": polled.console,
    }
