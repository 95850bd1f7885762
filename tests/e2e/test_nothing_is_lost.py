"""Server and keeper are killed while a run writes or waits for input; no line is lost, none comes twice."""

import asyncio
import contextlib
import json
import os
import random
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from roost.client.api import build_headers, build_url
from roost.client.sse import SSEMessage, SSEParser
from roost.runtimes.bubblewrap import BubblewrapRuntime
from tests.e2e.server_process import ServerProcess, kill_keeper, record_of
from tests.servers import Caller

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)

LINES = 400
"""As many lines are written between two prompts."""

COUNT = f"""
import time
own = open('own.txt', 'a', buffering=1)
total, go_on = 0, 'yes'
while go_on == 'yes':
    total += 1
    own.write(f'{{total}}\\n')
    print(total)
    if total % {LINES} == 0:
        go_on = input('go on? ')
    if total % 7 == 0:
        time.sleep(0.005)
"""

VICTIMS = (("server",), ("server", "keeper"), ("keeper",), ("server",), ("server", "keeper"))
"""Who is killed, in turn. A keeper that dies alone is started anew by the next server."""

MOMENTS = ("writing", "waiting", "answering")
"""The run is killed under while it writes, while it waits for input, and while its prompt is being answered."""


class Reader:
    """Reads one run over HTTP, from whichever server there is, and always continues after the last event it saw."""

    def __init__(self) -> None:
        self.seen: list[SSEMessage] = []
        self.waiting: int | None = None
        """The prompt that nobody has answered, as far as the events tell."""
        self.ended = False

    @property
    def after(self) -> int:
        return int(self.seen[-1].id or 0) if self.seen else 0

    @contextlib.asynccontextmanager
    async def reading(self, caller: Caller, session_id: str) -> Any:
        """A connection of its own; gives what reads until something is true."""
        url = build_url(caller.target, f"/session/{session_id}/runs/count/events", {"after": str(self.after)})
        headers = build_headers(caller.target, "GET", url, None, datetime.now(UTC))
        async with caller.http.get(url, headers=headers, skip_auto_headers=("Content-Type",)) as raw:
            assert raw.status == 200, await raw.text()
            parser, chunks = SSEParser(), raw.content.iter_any()
            backlog: list[SSEMessage] = []

            async def until(is_enough: Any) -> None:
                async with asyncio.timeout(60):
                    while not is_enough():
                        if not backlog:
                            backlog.extend(parser.feed(await anext(chunks)))
                            continue
                        self._take(backlog.pop(0))

            yield until

    def _take(self, message: SSEMessage) -> None:
        if message.id is None:
            return
        self.seen.append(message)
        if message.event == "prompt":
            self.waiting = json.loads(message.data)["prompt"]
        elif message.event == "input":
            self.waiting = None
        self.ended = message.event == "end"

    def text(self) -> str:
        return "".join(json.loads(message.data) for message in self.seen if message.event == "stdout")


class Killing:
    """One session with one run, and those who die around it."""

    def __init__(self, data_dir: Path, seed: int) -> None:
        self._data_dir = data_dir
        self._chance = random.Random(seed)
        self.killed: Counter[str] = Counter()
        self.reader = Reader()
        self.session_id = ""
        self.token = ""

    async def run(self, kills: int) -> None:
        """Kill so many times, every time another one serves; then let the run end."""
        done = 0
        while done < kills:
            await self._die_while_starting()
            with ServerProcess(self._data_dir) as server:
                async with server.caller() as caller:
                    if not self.session_id:
                        await self._begin(caller)
                    is_serving = True
                    while is_serving and done < kills:
                        is_serving = await self._kill_once(caller, server, VICTIMS[done % len(VICTIMS)])
                        done += 1
        with ServerProcess(self._data_dir) as server:
            async with server.caller() as caller:
                await self._finish(caller)

    async def _begin(self, caller: Caller) -> None:
        created = await caller("POST", "/session", {"name": "class-7", "image": "python"})
        self.session_id = created.body["sessionId"]
        assert record_of(self._data_dir, self.session_id)["runtime"] == "bubblewrap"
        self.token = _text_of(await self._run(caller, "import os; token = os.urandom(8).hex(); print(token)"))
        await caller("POST", f"/session/{self.session_id}/runs", {"run_id": "count", "code": COUNT})

    async def _kill_once(self, caller: Caller, server: ServerProcess, victims: tuple[str, ...]) -> bool:
        """One kill at a point of chance; whether the server lives on."""
        reader, moment = self.reader, self._chance.choice(MOMENTS)
        async with reader.reading(caller, self.session_id) as until:
            if reader.waiting is not None:
                await self._answer(caller)
            if moment == "writing":
                # Behind all that was written while nobody served, so that it writes now.
                await until(lambda: reader.waiting is not None)
                await self._answer(caller)
                enough = len(reader.seen) + self._chance.randrange(1, LINES // 8)
                await until(lambda: len(reader.seen) >= enough or reader.waiting is not None)
                self._kill(server, victims)
            else:
                await until(lambda: reader.waiting is not None)
                answering = asyncio.create_task(self._answer(caller)) if moment == "answering" else None
                if answering is not None:
                    await asyncio.sleep(self._chance.uniform(0, 0.01))
                self._kill(server, victims)
                if answering is not None:
                    with contextlib.suppress(aiohttp.ClientError):
                        await answering
        self.killed[moment] += 1
        return "server" not in victims

    def _kill(self, server: ServerProcess, victims: tuple[str, ...]) -> None:
        if "keeper" in victims:
            kill_keeper(self._data_dir)
        if "server" in victims:
            server.kill()
        self.killed.update(victims)

    async def _die_while_starting(self) -> None:
        """Now and then a server dies while it takes over what the one before has left."""
        if self.session_id and self._chance.random() < 0.2:
            with ServerProcess(self._data_dir):
                await asyncio.sleep(self._chance.uniform(0.3, 2.0))
            self.killed["starting server"] += 1

    async def _answer(self, caller: Caller, text: str = "yes") -> None:
        body = {"prompt": self.reader.waiting, "text": text}
        reply = await caller("POST", f"/session/{self.session_id}/runs/count/input", body)
        assert reply.status == 204, reply.body
        self.reader.waiting = None

    async def _finish(self, caller: Caller) -> None:
        reader = self.reader
        async with reader.reading(caller, self.session_id) as until:
            await until(lambda: reader.waiting is not None)
            await self._answer(caller, "no")
            await until(lambda: reader.ended)
        own = (self._data_dir / "sandboxes" / self.session_id / "home" / "own.txt").read_text()
        state = _text_of(await self._run(caller, "print(token, total, go_on)"))
        ended = await caller("DELETE", f"/session/{self.session_id}")

        lines = len(own.splitlines())
        print(f"{lines} lines in {len(reader.seen)} events")
        assert [message.id for message in reader.seen] == [str(seq) for seq in range(1, len(reader.seen) + 1)]
        assert reader.text() == own == "".join(f"{number}\n" for number in range(1, lines + 1))
        assert state == f"{self.token.strip()} {lines} no\n"
        assert json.loads(reader.seen[-1].data)["status"] == "ok"
        assert ended.status == 200

    async def _run(self, caller: Caller, code: str) -> list[SSEMessage]:
        run = await caller("POST", f"/session/{self.session_id}/runs", {"code": code})
        return await caller.events(self.session_id, run.body["run_id"])


async def kill_many_times(data_dir: Path, kills: int) -> Counter[str]:
    seed = int(os.environ.get("ROOST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"seed {seed} (ROOST_SEED repeats it)")
    killing, began = Killing(data_dir, seed), time.monotonic()

    await killing.run(kills)

    print(f"{kills} kills in {time.monotonic() - began:.0f} s:", dict(killing.killed))
    return killing.killed


@pytest.mark.timeout(300)
async def test_twenty_kills_lose_nothing(data_dir: Path) -> None:
    killed = await kill_many_times(data_dir, kills=20)

    assert killed["server"] >= 8
    assert killed["keeper"] >= 8


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.skipif("ROOST_SOAK" not in os.environ, reason="a long run: `make soak` does it")
async def test_a_hundred_kills_lose_nothing(data_dir: Path) -> None:
    killed = await kill_many_times(data_dir, kills=100)

    assert killed["server"] >= 40
    assert killed["keeper"] >= 40


def _text_of(messages: list[SSEMessage]) -> str:
    return "".join(json.loads(message.data) for message in messages if message.event == "stdout")
