"""A small server on loopback that speaks what the SDK speaks, checks signatures for real, and plays scripted runs."""

import asyncio
import io
import json
import tarfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import unquote

from aiohttp import MultipartWriter, web

from roost.server.auth.signing import SignedRequest, parse_authorization, parse_date, verify
from roost.wire.errors import NotAuthenticated, RoostError, RunNotFound, SessionNotFound
from roost.wire.mime import NOTE

ACCESS_KEY, SECRET_KEY, TOKEN = "AKIATESTTESTTESTTEST", "secret/of+the-test", "token-of-the-test"
PROBLEMS = "https://api.backend.ai/probs/"

LACKS = '{"dropped": [{"mime": "text/html", "bytes": 2000000}]}'
HELLO = [("started", {"state_lost": False}), ("stdout", "hello\n"), ("result", {"text": "21"})]
FAILS = [
    ("stderr", "Traceback:\nValueError: no\n"),
    ("error", {"name": "ValueError", "value": "no", "traceback": ["Traceback:\n", "ValueError: no\n"]}),
]
ASKS = [("stdout", "before\n"), ("prompt", {"prompt": 1, "text": "name? ", "password": False})]
SHOWS = [
    ("display", {"mime": {"text/plain": "drawn", "image/png": "UE5H"}, "display_id": "a"}),
    ("display", {"mime": {"text/plain": "other", "text/html": "<b>"}}),
    ("display", {"mime": {"text/plain": "again", "image/png": "UE5HMg=="}, "display_id": "a", "update": True}),
    ("display", {"mime": {"text/plain": "new", NOTE: LACKS}, "display_id": "b", "update": True}),
]
MANY = [("stdout", f"{number}\n") for number in range(50)]
SCRIPTS: dict[str, list[tuple[str, Any]]] = {"hello": HELLO, "fails": FAILS, "asks": ASKS, "many": MANY, "shows": SHOWS}
EXITS = {"fails": ("error", 1), "exits": ("exited", 7), "dies": ("kernel-died", 137)}


@dataclass
class ServedRun:
    """A run, and whatever waits for its next event."""

    code: str
    events: list[tuple[str, Any]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, kind: str, data: Any) -> None:
        self.events.append((kind, data))
        self.changed.set()

    def end(self, status: str, exit_code: int) -> None:
        reason = {"code": "kernel-exited", "sentence": "the interpreter died", "hint": "run it again"}
        cost = {"cpu_s": 0.5, "peak_bytes": 1024, "read_bytes": 0, "written_bytes": 0, "wall_s": 1.0}
        body = {"status": status, "exit_code": exit_code, "cost": cost}
        self.add("end", body | ({"reason": reason} if status == "kernel-died" else {}))


class ClientServer:
    """Runs in a thread of its own, so that blocking clients can be tested beside it."""

    def __init__(self) -> None:
        self.sessions: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.runs: dict[str, ServedRun] = {}
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[Any] = []
        self.keys: list[str | None] = []
        """The `Idempotency-Key` of each creation."""
        self.cut_after: int | None = None
        """Close each event stream after so many events."""
        self.lose_starts = 0
        """Break so many connections after a start was accepted and before it is answered."""
        self.version = "v7.20230615"
        self.is_roost = False
        """Whether it says that it is a server of ours."""
        self.lose_creations = 0
        """Break so many connections after a creation was done and before it is answered."""
        self.announcement: dict[str, Any] = {"enabled": False, "message": ""}
        self.archive: Callable[[str], bytes] = lambda name: tar_of(name, self.files[name])

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _serve(self, ready: threading.Event) -> None:
        asyncio.run(self._main(ready))

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(middlewares=[self._middleware])
        app.add_routes(
            [
                web.get("/", self._hello),
                web.get("/manager/announcement", self._announce),
                web.post("/session", self._create),
                web.get("/session", self._list),
                web.get("/session/{ref}", self._info),
                web.post("/session/{ref}", self._execute),
                web.delete("/session/{ref}", self._destroy),
                web.post("/session/{ref}/interrupt", self._no_content),
                web.get("/session/{ref}/logs", self._logs),
                web.get("/session/{ref}/files", self._list_files),
                web.get("/session/{ref}/history", self._history),
                web.post("/session/{ref}/upload", self._upload),
                web.get("/session/{ref}/download", self._download),
                web.put("/session/{ref}/files/{path:.+}", self._put),
                web.get("/session/{ref}/files/{path:.+}", self._get),
                web.post("/session/{ref}/runs", self._start),
                web.get("/session/{ref}/runs/{run}/events", self._events),
                web.post("/session/{ref}/runs/{run}/input", self._input),
                web.post("/session/{ref}/runs/{run}/interrupt", self._interrupt_run),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await self._stop.wait()
        await runner.cleanup()

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.raw_path))
        try:
            if request.path != "/" or "Authorization" in request.headers:
                authenticate(request)
            return await handler(request)  # type: ignore[no-any-return]
        except RoostError as error:
            status = 401 if isinstance(error, NotAuthenticated) else 404
            body = {"type": PROBLEMS + error.code, "title": error.title(), "msg": error.message, "hint": error.hint}
            return web.json_response(body, status=status, content_type="application/problem+json")

    def session_of(self, request: web.Request) -> str:
        reference = request.match_info["ref"]
        for name, identifier in self.sessions.items():
            if reference in (name, identifier):
                return name
        raise SessionNotFound

    def run_of(self, request: web.Request) -> ServedRun:
        self.session_of(request)
        if request.match_info["run"] not in self.runs:
            raise RunNotFound
        return self.runs[request.match_info["run"]]

    async def _hello(self, request: web.Request) -> web.Response:
        ours = {"roost": "1"} if self.is_roost else {}
        return web.json_response({"version": self.version, "manager": "test"} | ours)

    async def _announce(self, request: web.Request) -> web.Response:
        return web.json_response(self.announcement)

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Idempotency-Key"))
        created = body["name"] not in self.sessions
        identifier = self.sessions.setdefault(body["name"], str(uuid.uuid4()))
        if self.lose_creations:
            self.lose_creations -= 1
            assert request.transport is not None
            request.transport.abort()
        answer = {"sessionId": identifier, "sessionName": body["name"], "status": "RUNNING", "created": created}
        return web.json_response(answer | {"servicePorts": []}, status=201 if created else 200)

    async def _list(self, request: web.Request) -> web.Response:
        items = [
            {"name": name, "status": "RUNNING", "image": "python", "status_info": "usable"} for name in self.sessions
        ]
        return web.json_response({"items": items})

    async def _info(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "RUNNING", "lang": "python", "name": self.session_of(request)})

    async def _execute(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.session_of(request)
        result = {
            "runId": body["runId"] or "r1",
            "status": "finished",
            "exitCode": 0,
            "console": [["stdout", body["code"]]],
        }
        return web.json_response({"result": result})

    async def _destroy(self, request: web.Request) -> web.Response:
        del self.sessions[self.session_of(request)]
        return web.json_response({"stats": {"status": "terminated"}})

    async def _no_content(self, request: web.Request) -> web.Response:
        self.session_of(request)
        return web.Response(status=204)

    async def _logs(self, request: web.Request) -> web.Response:
        return web.json_response({"result": {"logs": "hello\n"}})

    async def _list_files(self, request: web.Request) -> web.Response:
        files = json.dumps([{"filename": name, "size": len(content)} for name, content in self.files.items()])
        return web.json_response({"files": files, "errors": "", "abspath": (await request.json())["path"]})

    async def _history(self, request: web.Request) -> web.Response:
        self.session_of(request)
        return web.json_response(
            [{"at": "10:00", "code": "created", "sentence": "the session was created", "hint": None}]
        )

    async def _put(self, request: web.Request) -> web.Response:
        self.session_of(request)
        self.files[request.match_info["path"]] = await request.read()
        return web.Response(status=201)

    async def _get(self, request: web.Request) -> web.Response:
        self.session_of(request)
        return web.Response(body=self.files[request.match_info["path"]], content_type="application/octet-stream")

    async def _upload(self, request: web.Request) -> web.Response:
        self.session_of(request)
        async for part in await request.multipart():
            assert part.name == "src"  # type: ignore[union-attr]
            self.files[unquote(part.filename)] = bytes(await part.read())  # type: ignore[union-attr, arg-type]
        return web.Response(status=204)

    async def _download(self, request: web.Request) -> web.Response:
        self.session_of(request)
        writer = MultipartWriter("mixed")
        for name in (await request.json())["files"]:
            writer.append(self.archive(name), {"Content-Type": "application/octet-stream"})
        return web.Response(body=writer)

    async def _start(self, request: web.Request) -> web.Response:
        self.session_of(request)
        body = await request.json()
        self.bodies.append(body)
        is_new = body["run_id"] not in self.runs
        if is_new:
            run = self.runs[body["run_id"]] = ServedRun(body["code"])
            for kind, data in SCRIPTS.get(run.code, []):
                run.add(kind, data)
            if run.code not in ("asks", "waits"):
                run.end(*EXITS.get(run.code, ("ok", 0)))
        if self.lose_starts:
            self.lose_starts -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"run_id": body["run_id"], "state": "accepted"}, status=201 if is_new else 200)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        run, seq, sent = self.run_of(request), int(request.query["after"]), 0
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            run.changed.clear()
            for kind, data in run.events[seq:]:
                seq, sent = seq + 1, sent + 1
                await response.write(f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode())
                if kind == "end":
                    return response
                if sent == self.cut_after:
                    assert request.transport is not None
                    request.transport.close()
                    return response
            await run.changed.wait()

    async def _input(self, request: web.Request) -> web.Response:
        run, body = self.run_of(request), await request.json()
        if "eof" in body:
            run.add("input", {"prompt": body["prompt"], "eof": True})
            run.add("stderr", "EOFError\n")
            run.add("error", {"name": "EOFError", "value": "", "traceback": ["EOFError\n"]})
            run.end("error", 1)
        else:
            run.add("input", {"prompt": body["prompt"], "text": body["text"]})
            run.add("stdout", f"hi {body['text']}\n")
            run.end("ok", 0)
        return web.Response(status=204)

    async def _interrupt_run(self, request: web.Request) -> web.Response:
        self.run_of(request).end("interrupted", 130)
        return web.json_response({"outcome": "sent"})


def authenticate(request: web.Request) -> None:
    """Accept the token or a valid signature, as the real server does."""
    header = request.headers.get("Authorization")
    if header is None:
        raise NotAuthenticated
    if header == f"Bearer {TOKEN}":
        return
    when = parse_date(request.headers.get("Date"), datetime.now(UTC))
    credential = parse_authorization(header)
    if credential.access_key != ACCESS_KEY:
        raise NotAuthenticated
    signed = SignedRequest(
        method=request.method,
        target=request.raw_path,
        date=request.headers["Date"],
        host=request.headers["Host"],
        content_type=request.headers.get("Content-Type"),
        version=request.headers["X-BackendAI-Version"],
    )
    verify(signed, credential, SECRET_KEY, when)


def tar_of(name: str, content: bytes) -> bytes:
    """A tar with one file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:") as tar:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mtime = len(content), int(time.time())
        tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()
