"""Running code over a WebSocket: one connection, one run (spec/execution.md §7)."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
from aiohttp import WSMsgType, web

from roost.server.domain.sessions import Session
from roost.server.http.context import platform_of, room_of, session_of
from roost.server.http.documents import parse_json
from roost.server.http.incoming import Incoming
from roost.server.http.memory import PAGE, bytes_of_answer
from roost.server.http.work import Work, read_start
from roost.server.services.runs import Polled
from roost.wire.errors import InvalidParameters, LimitExceeded, RoostError
from roost.wire.runs import RunStatus

OPEN: web.AppKey[set[web.WebSocketResponse]] = web.AppKey("open_sockets", set)
"""The sockets that are open now, so that a server that stops can say so."""

MAX_MESSAGE = 16 << 20
TYPED_AHEAD = 10_000
"""As many lines of input may wait for prompts, `MAX_MESSAGE` bytes together. The socket is read all the same, or
nobody would hear its close."""
LOOK_AGAIN_S = 15.0

T = TypeVar("T")


class _Disconnected(Exception):
    """The client is gone."""


async def execute(request: web.Request) -> web.WebSocketResponse:
    """`GET /stream/session/{ref}/execute`

    The query may name a `run_id`, and with it `on_disconnect=continue`: the run then goes on when its client goes,
    which can follow its events elsewhere. Without, nobody could name the run again, so it is interrupted.
    """
    if request.transport is None:
        raise ConnectionResetError("the client is gone")
    with room_of(request) as room, Incoming(request.transport, room) as incoming:
        return await _execute(request, incoming)


async def _execute(request: web.Request, incoming: Incoming) -> web.WebSocketResponse:
    session = await session_of(request)
    run_id = request.query.get("run_id")
    goes_on = request.query.get("on_disconnect") == "continue"
    if goes_on and run_id is None:
        raise InvalidParameters(
            "on_disconnect=continue needs a run_id", hint="choose one, so that it can be found again"
        )
    # Packed messages are not agreed to, as bodies are not: a few kilobytes may stand for all that a message may have.
    socket = web.WebSocketResponse(max_msg_size=MAX_MESSAGE, writer_limit=PAGE, compress=False)
    await socket.prepare(request)
    request.app[OPEN].add(socket)
    try:
        await _Execution(request, socket, incoming, session, run_id, goes_on).serve()
    finally:
        request.app[OPEN].discard(socket)
        await socket.close()
    return socket


async def close_all(app: web.Application) -> None:
    """Tell every client that the server stops."""
    sockets = app[OPEN]
    for socket in list(sockets):
        with contextlib.suppress(ConnectionError):
            await _send(socket, {"status": "server-restarting", "msg": "the server stops; the session goes on"})
            await socket.close()


class _Execution:
    """One run and its client."""

    def __init__(
        self,
        request: web.Request,
        socket: web.WebSocketResponse,
        incoming: Incoming,
        session: Session,
        run_id: str | None,
        goes_on: bool,
    ) -> None:
        self._socket = socket
        self._incoming = incoming
        self._unread = room_of(request)
        self._session = session
        self._runs = platform_of(request).runs
        self._run_id = run_id
        self._goes_on = goes_on
        self._lines: asyncio.Queue[bytes] = asyncio.Queue(TYPED_AHEAD)
        """As bytes, since a single character beyond ASCII would make a text take four times as much."""
        self._ahead = 0
        """Bytes in them."""

    async def serve(self) -> None:
        """Start what the first message asks for, and go on to its end, its client's or an error."""
        started: str | None = None
        reader: asyncio.Task[None] | None = None
        try:
            started = await self._start()
            reader = asyncio.create_task(self._read_lines(), name=f"stream-{started}")
            await self._follow(started, reader)
        except RoostError as error:
            faults = f": {orjson.dumps(error.data).decode()}" if error.data is not None else ""
            await self._leave(started)
            await _send(self._socket, {"status": "error", "msg": error.message + faults})
        except (_Disconnected, ConnectionError):
            await self._leave(started)
        finally:
            if reader is not None:
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
            self._unread.take(0)

    async def _start(self) -> str:
        """Start what the first message asks for, and forget the message; gives the run's id."""
        async with self._incoming.reading():
            first = await self._socket.receive()
        if first.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            raise _Disconnected
        work = _read_start(first.data)
        run = await self._runs.start(self._session, work.code, run_id=self._run_id, batch=work.batch)
        self._incoming.used(len(first.data if isinstance(first.data, bytes) else first.data.encode()))
        return run.run_id

    async def _leave(self, run_id: str | None) -> None:
        """Interrupt the run where nobody could name it again."""
        if run_id is not None and not self._goes_on:
            with contextlib.suppress(RoostError):  # the session has ended meanwhile, and the run with it
                await self._runs.interrupt(self._session, run_id)

    async def _follow(self, run_id: str, reader: asyncio.Task[None]) -> None:
        seq, status, has_ended = 0, "", False
        while not has_ended:
            seq, status, has_ended = await self._send_next(run_id, seq, reader)
            if status == "waiting-input":
                await _unless_gone(self._answer(run_id, seq), reader)

    async def _send_next(self, run_id: str, after: int, reader: asyncio.Task[None]) -> tuple[int, str, bool]:
        """Send what comes behind an event; gives the last event that is sent now, the run's status, and whether it has
        ended.

        Where there is no room it lets go of what it has read, waits, and leaves it to the next call to read it again.
        """
        reading = self._runs.part(self._session, run_id, after=after, max_bytes=PAGE, wait_s=LOOK_AGAIN_S)
        part = await _unless_gone(reading, reader)
        seq, status, has_ended = part.seq, part.status, part.end is not None
        message = orjson.dumps(_part_view(part))
        del part
        size = bytes_of_answer(len(message))
        if not self._unread.take(size):
            del message
            await _unless_gone(self._unread.wait(size), reader)
            return after, "", False
        await self._socket.send_frame(message, WSMsgType.TEXT)
        self._unread.take(0)
        return seq, status, has_ended

    async def _answer(self, run_id: str, seq: int) -> None:
        """Answer the prompt that waits with the next line, unless it is answered or ended otherwise first."""
        line = asyncio.ensure_future(self._lines.get())
        try:
            while not line.done():
                moved = asyncio.ensure_future(
                    self._runs.read(self._session, run_id, after=seq, max_bytes=0, wait_s=LOOK_AGAIN_S)
                )
                try:
                    await asyncio.wait((line, moved), return_when=asyncio.FIRST_COMPLETED)
                    if not line.done() and (await moved).run.last_seq > seq:
                        return
                finally:
                    moved.cancel()
            size = len(line.result())
            self._ahead -= size
            await self._runs.feed(self._session, run_id, prompt=None, text=line.result().decode())
            self._incoming.used(size)
        finally:
            line.cancel()

    async def _read_lines(self) -> None:
        """Lines of input, as they are typed; ends with the connection.

        Raises:
            LimitExceeded: too much is typed ahead, or what comes has waited for room for too long.
        """
        async with self._incoming.reading():
            async for message in self._socket:
                if message.type is WSMsgType.TEXT:
                    line = message.data.encode()
                    self._ahead += len(line)
                    if self._lines.full() or self._ahead > MAX_MESSAGE:
                        raise LimitExceeded("too much input waits for prompts; send a line when it is asked for")
                    self._lines.put_nowait(line)
                elif message.type is WSMsgType.BINARY:
                    self._incoming.used(len(message.data))


async def _unless_gone(work: Coroutine[Any, Any, T], reader: asyncio.Task[None]) -> T:
    """The result of some work, unless the client goes first, or its reader fails."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task, reader), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            reader.result()
            raise _Disconnected
        return await task
    finally:
        task.cancel()


async def _send(socket: web.WebSocketResponse, message: dict[str, Any]) -> None:
    await socket.send_str(orjson.dumps(message).decode())


def _read_start(text: Any) -> Work:
    return read_start(parse_json(text, "the first message"))


def _part_view(part: Polled) -> dict[str, Any]:
    if part.end is not None and part.end.status is RunStatus.SANDBOX_LOST:
        sentence = part.end.reason.sentence if part.end.reason is not None else "the session is gone"
        return {"status": "server-restarting", "msg": sentence, "console": part.console}
    return {
        "status": part.status,
        "console": part.console,
        "exitCode": part.exit_code,
        "options": part.options,
        "files": [],
    }
