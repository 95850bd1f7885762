"""A server in a process of its own, and signed requests to it on one connection."""

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import aiohttp

from roost.client.api import Api, Target, build_headers, build_url
from roost.client.local import LocalServer, read_local_server
from roost.wire.runs import Event, EventKind

TIMEOUT_S = 30.0


class BenchServer:
    """`python -m roost.server` on a data folder of its own; `async with` starts and stops it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.started_in_s = 0.0
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        self.data_dir.mkdir()
        self._log = (self.data_dir / "server.log").open("wb")
        started = time.perf_counter()
        command = ("-m", "roost.server", "--listen", "127.0.0.1:0", "--data-dir", str(self.data_dir))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdout=self._log, stderr=self._log
        )
        admin = await self._wait_for_server()
        self.started_in_s = time.perf_counter() - started
        # With a key pair and without a token, requests are signed.
        target = Target(endpoint=admin.endpoint, access_key=admin.access_key, secret_key=admin.secret_key)
        self.api = await Api(target).__aenter__()
        await self.api.call("GET", "/session")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # Sessions outlive their server, so those that a failure left behind are ended here.
        for session in (await self.api.call("GET", "/session")).body:
            await self.api.call("DELETE", f"/session/{session['id']}", params={"forced": "true"})
        await self.api.__aexit__(*exc_info)
        self._process.terminate()
        async with asyncio.timeout(TIMEOUT_S):
            await self._process.wait()
        self._log.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def create(self) -> "BenchSession":
        """A session that runs: the server answers no sooner."""
        name = f"bench-{next(self._numbers)}"
        answer = await self.api.call("POST", "/session", body={"name": name, "image": "python"})
        assert answer.body["status"] == "RUNNING", answer.body
        return BenchSession(self, name, answer.body["sessionId"])

    async def _wait_for_server(self) -> LocalServer:
        deadline = time.monotonic() + TIMEOUT_S
        while (admin := read_local_server(self.data_dir)) is None:
            if self._process.returncode is not None or time.monotonic() > deadline:
                raise RuntimeError((self.data_dir / "server.log").read_text())
            await asyncio.sleep(0.002)
        return admin


class BenchSession:
    """One session of a server."""

    def __init__(self, server: BenchServer, name: str, session_id: str) -> None:
        self._server = server
        self.path = f"/session/{name}"
        self._name = name
        self._id = session_id

    @property
    def pid(self) -> int:
        """The first of its processes, which all others are below."""
        record = json.loads((self._server.data_dir / "sandboxes" / self._id / "sandbox.json").read_text())
        return int(record["pid"])

    async def execute(self) -> None:
        """`1+1` and its value by the compatible call."""
        body = {"mode": "query", "code": "1+1", "runId": None, "options": None}
        answer = await self._server.api.call("POST", self.path, body=body)
        assert answer.body["result"]["console"] == [["stdout", "2"]], answer.body

    async def run(self) -> None:
        """`1+1` by our own endpoints: start, then events up to the end."""
        values = []
        async with contextlib.aclosing(self.events(await self.start("1+1"))) as events:
            async for event in events:
                if event.kind is EventKind.RESULT:
                    values.append(event.data["text"])
        assert values == ["2"], values

    async def start(self, code: str) -> str:
        """Start a run; its id."""
        answer = await self._server.api.call("POST", f"{self.path}/runs", body={"code": code})
        return str(answer.body["run_id"])

    def events(self, run_id: str) -> AsyncGenerator[Event, None]:
        """A run's events, as our client reads them."""
        return self._server.api.events(self._name, run_id)

    @contextlib.asynccontextmanager
    async def stream(self, run_id: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The same as the bytes of the response, on a connection of its own."""
        target = self._server.api.target
        url = build_url(target, f"{self.path}/runs/{run_id}/events", {"after": "0"})
        headers = build_headers(target, "GET", url, None, datetime.now(UTC))
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_read=TIMEOUT_S)) as http,
            http.get(url, headers=headers, skip_auto_headers=("Content-Type",), raise_for_status=True) as raw,
        ):
            yield raw.content.iter_any()

    async def destroy(self) -> None:
        await self._server.api.call("DELETE", self.path)
