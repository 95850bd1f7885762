"""The compatible way to run code: start, poll, answer (spec/execution.md §2 to §6)."""

import asyncio
from typing import Any

from aiohttp import web

from roost.server.domain.sessions import Session
from roost.server.http.context import answer, platform_of, room_to_send, session_of
from roost.server.http.deliveries import Deliveries
from roost.server.http.params import read_json
from roost.server.http.work import ANSWERING, STARTING, read_completed, read_work
from roost.server.services.runs import Polled
from roost.wire.errors import InvalidParameters, RunNotFound

DELIVERIES: web.AppKey[Deliveries] = web.AppKey("deliveries", Deliveries)


async def execute(request: web.Request) -> web.StreamResponse:
    """`POST /session/{ref}`: start a run, or go on with one, and answer with its next part."""
    work = read_work(await read_json(request))
    after = _after(request)
    session = await session_of(request)
    runs = platform_of(request).runs
    if work.mode == "complete":
        return _completed(await runs.complete(session, work.code))
    run_id = work.run_id
    if work.mode in STARTING:
        run_id = (await runs.start(session, work.code, run_id=run_id, batch=work.batch)).run_id
    assert run_id is not None
    try:
        if work.mode in ANSWERING:
            await runs.feed(session, run_id, prompt=None, text=work.code)
        await request.app[DELIVERIES].settle(session.id, run_id, _transport_of(request))
        polled = await runs.poll(session, run_id, after=after)
    except RunNotFound as error:
        raise InvalidParameters(error.message, hint="start it with mode `query`") from None
    return await _deliver(request, session, polled)


async def complete(request: web.Request) -> web.Response:
    """`POST /session/{ref}/complete`"""
    text = read_completed(await read_json(request))
    session = await session_of(request)
    return _completed(await platform_of(request).runs.complete(session, text))


async def interrupt(request: web.Request) -> web.Response:
    """`POST /session/{ref}/interrupt`"""
    session = await session_of(request)
    await platform_of(request).runs.interrupt(session)
    return web.Response(status=204)


def _completed(completions: list[str]) -> web.Response:
    return answer({"result": {"status": "finished", "completions": completions}})


async def _deliver(request: web.Request, session: Session, polled: Polled) -> web.StreamResponse:
    """Write the answer, and move the run's cursor only then: a crash in between repeats and never loses."""
    response = answer({"result": _result_view(polled)})
    response.headers["X-Roost-Seq"] = str(polled.seq)
    transport = _transport_of(request)
    with room_to_send(request, response):
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


def _result_view(polled: Polled) -> dict[str, Any]:
    return {
        "runId": polled.run_id,
        "status": polled.status,
        "exitCode": polled.exit_code,
        "options": polled.options,
        "files": [],
        "console": polled.console,
    }
