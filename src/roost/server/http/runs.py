"""Runs and their events: our own endpoints (docs/protocol/http.md)."""

import functools
import hashlib
from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web

from roost.server.http.context import answer, idempotency_key, platform_of, room_of, session_of
from roost.server.http.memory import PAGE, Room, bytes_of_answer
from roost.server.http.params import Answer, Interruption, RunStart, check, read_json, read_params
from roost.server.http.views import run_view
from roost.wire.errors import InvalidParameters, TooMuchHeld
from roost.wire.runs import BatchStages, Event, EventKind, Page

KEEP_ALIVE_S = 15.0
"""A stream that has nothing to say for so long says that it lives."""


async def start_run(request: web.Request) -> web.Response:
    """`POST …/runs`: 201, or 200 where the run exists with the same code."""
    params = check(await read_json(request), RunStart)
    session = await session_of(request)
    run_id, key = params.run_id, idempotency_key(request)
    if run_id is None and key is not None:
        run_id = f"key-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    run = await platform_of(request).runs.start(
        session,
        params.code,
        run_id=run_id,
        batch=_stages(params),
        echo=params.options.echo,
        timeout_s=params.options.timeout_s,
    )
    return answer({"run_id": run.run_id, "state": run.state.value}, 201 if run.created else 200)


def _stages(params: RunStart) -> BatchStages | None:
    options = params.options
    stages = BatchStages(clean=options.clean or None, build=options.build or None, exec=options.exec or None)
    if params.mode == "batch":
        if params.code:
            raise InvalidParameters("a batch run has no code", hint="put its commands into options")
        return stages
    if stages != BatchStages():
        raise InvalidParameters("clean, build and exec are options of batch runs", hint='say `"mode": "batch"`')
    return None


async def list_runs(request: web.Request) -> web.Response:
    """`GET …/runs`, oldest first."""
    session = await session_of(request, dead_too=True)
    return answer([run_view(run) for run in await platform_of(request).runs.list(session)])


async def get_run(request: web.Request) -> web.Response:
    """`GET …/runs/{run}`"""
    session = await session_of(request, dead_too=True)
    return answer(run_view(await platform_of(request).runs.get(session, request.match_info["run"])))


async def answer_prompt(request: web.Request) -> web.Response:
    """`POST …/runs/{run}/input`: a line, or end-of-file."""
    params = check(await read_json(request), Answer)
    if params.eof == (params.text is not None):
        raise InvalidParameters("send either `text` or `eof: true`")
    session = await session_of(request)
    await platform_of(request).runs.feed(session, request.match_info["run"], prompt=params.prompt, text=params.text)
    return web.Response(status=204)


async def interrupt_run(request: web.Request) -> web.Response:
    """`POST …/runs/{run}/interrupt`"""
    params = await read_params(request, Interruption)
    session = await session_of(request)
    runs = platform_of(request).runs
    outcome = await runs.interrupt(session, request.match_info["run"], grace_s=params.grace_s)
    return answer({"outcome": outcome.value})


async def stream_events(request: web.Request) -> web.StreamResponse:
    """`GET …/runs/{run}/events?after=N`: server-sent events up to the run's end; `id:` is the seq."""
    after = _after(request)
    session = await session_of(request, dead_too=True)
    runs, run_id = platform_of(request).runs, request.match_info["run"]
    await runs.get(session, run_id)  # an unknown run is a problem document, not a broken stream
    response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.content_type = "text/event-stream"
    await response.prepare(request)
    read = functools.partial(runs.read, session, run_id, max_bytes=PAGE, wait_s=KEEP_ALIVE_S)
    has_ended = False
    try:
        with room_of(request) as room:
            while not has_ended:
                after, has_ended = await _send_next(response, room, read, after)
    except TooMuchHeld as error:
        await response.write(f": {error.message}\n\n".encode())
    await response.write_eof()
    return response


async def _send_next(
    response: web.StreamResponse, room: Room, read: Callable[..., Awaitable[Page]], after: int
) -> tuple[int, bool]:
    """Send what comes behind an event; gives the last event that is sent now, and whether it is the end.

    A function of its own, so that nothing is held while there is nothing to send. Where there is no room it lets go of
    what it has read, waits, and leaves it to the next call to read it again.
    """
    page = await read(after=after)
    if not page.events:
        has_ended = page.run.end is not None and page.run.last_seq <= after
        if not has_ended:
            await response.write(b": still here\n\n")
        return after, has_ended
    last, has_ended = page.events[-1].seq, page.events[-1].kind is EventKind.END
    message = b"".join(piece for event in page.events for piece in _message(event))
    del page
    size = bytes_of_answer(len(message))
    if not room.take(size):
        del message
        await room.wait(size)
        return after, False
    await response.write(message)
    room.take(0)
    return last, has_ended


def _after(request: web.Request) -> int:
    text = request.query.get("after") or request.headers.get("Last-Event-ID") or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidParameters(f"after must be a sequence number, not {text!r:.40}")
    return int(text)


def _message(event: Event) -> tuple[bytes, bytes, bytes]:
    return b"id: %d\nevent: %s\ndata: " % (event.seq, event.kind.value.encode()), orjson.dumps(event.data), b"\n\n"
