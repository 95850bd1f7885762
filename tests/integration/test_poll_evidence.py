"""The compatible poll over connections that break: never missing, never twice, and what no server can know."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import msgspec
import pytest

from roost.client.api import build_headers, build_url
from roost.client.config import APIConfig
from roost.client.repeats import POLL_AGAIN_S
from roost.client.session import AsyncSession
from roost.server.http import deliveries
from tests.relay import Cut, Relay, a_relay
from tests.servers import Caller

PATH = "/session/class-7"
LINE = "x" * 99
LINES = 30_000
LONG = f"for i in range({LINES}): print(i, {LINE!r})"
"""Three answers long: one is full at 1 MiB."""
WRITTEN = "".join(f"{i} {LINE}\n" for i in range(LINES))

CUTS = [
    Cut(up=0),
    Cut(up=100),
    Cut(down=0),
    Cut(down=20),
    Cut(down=200),
    Cut(down=1000),
    Cut(down=500_000),
    Cut(down=-500_000),
    Cut(down=-1),
]
"""Before and in the request; in the status line, the headers and the body. From the end on, the server cannot know."""


@pytest.fixture
async def session(server: Caller) -> Caller:
    """A server with a running session `class-7`."""
    reply = await server("POST", "/session", {"name": "class-7", "image": "python"})
    assert reply.status == 201
    return server


@pytest.fixture
async def relay(server: Caller) -> AsyncIterator[Relay]:
    async with a_relay(server.target.endpoint) as relay:
        yield relay


def through(relay: Relay, caller: Caller) -> Caller:
    return Caller(msgspec.structs.replace(caller.target, endpoint=relay.endpoint), caller.http)


async def a_run_that_has_ended(caller: Caller, code: str, run_id: str = "r1") -> None:
    await caller("POST", f"{PATH}/runs", {"run_id": run_id, "code": code})
    await caller.events("class-7", run_id)


def body_of(run_id: str = "r1") -> dict[str, Any]:
    return {"mode": "continue", "code": "", "runId": run_id, "options": None}


def text_of(result: dict[str, Any]) -> str:
    return "".join(data for kind, data in result["console"] if kind == "stdout")


async def polled_to_the_end(caller: Caller, run_id: str = "r1") -> str:
    parts = [await caller.execute("class-7", mode="continue", run_id=run_id)]
    while parts[-1]["status"] == "continued":
        parts.append(await caller.execute("class-7", mode="continue", run_id=run_id))
    return "".join(map(text_of, parts))


class Connection:
    """A client without any courtesy: it reads what it is told to, and goes when it is told to."""

    def __init__(self, caller: Caller, receive_bytes: int | None = None) -> None:
        self._caller = caller
        self._socket = socket.socket()
        if receive_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._socket.setblocking(False)

    async def __aenter__(self) -> "Connection":
        url = build_url(self._caller.target, PATH)
        await asyncio.get_running_loop().sock_connect(self._socket, (url.host, url.port))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    async def poll(self, run_id: str = "r1") -> None:
        url = build_url(self._caller.target, PATH)
        headers = build_headers(self._caller.target, "POST", url, "application/json", datetime.now(UTC))
        body = b'{"mode": "continue", "code": "", "runId": "%s"}' % run_id.encode()
        lines = [f"POST {url.raw_path_qs} HTTP/1.1", f"Host: {url.host}:{url.port}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() != "host"]
        await asyncio.get_running_loop().sock_sendall(self._socket, "\r\n".join([*lines, "", ""]).encode() + body)

    async def read(self, size: int) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._socket, size), 30)

    async def arrived(self, ending: bytes) -> None:
        """Until an answer that ends so lies in our kernel, read by nobody."""
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(BlockingIOError):
                    if self._socket.recv(1 << 20, socket.MSG_PEEK).endswith(ending):
                        return
                await asyncio.sleep(0.01)

    def close(self) -> None:
        self._socket.close()


async def test_who_says_what_it_has_misses_nothing_and_gets_nothing_twice(session: Caller, relay: Relay) -> None:
    """The first three answers are cut three times each before they go through."""
    await a_run_that_has_ended(session, LONG)
    caller, seen, parts = through(relay, session), 0, []

    for number, cut in enumerate(CUTS, 1):
        relay.cuts.append(cut)
        with pytest.raises(aiohttp.ClientError):
            await poll_after(caller, seen)
        if number % 3 == 0:
            part, seen = await poll_after(caller, seen)
            parts.append(text_of(part))
    last, end = await poll_after(caller, seen)

    assert "".join(parts) + text_of(last) == WRITTEN
    assert (last["status"], await poll_after(caller, end)) == ("finished", ({**last, "console": []}, end))


async def poll_after(caller: Caller, seen: int) -> tuple[dict[str, Any], int]:
    headers = {"X-Roost-After": str(seen), "Connection": "close"}
    reply = await caller("POST", PATH, body_of(), headers=headers)
    assert reply.status == 200, reply.body
    return reply.body["result"], int(reply.headers["X-Roost-Seq"])


@pytest.mark.parametrize("text", ["-1", "x", "1.5", "9" * 30, ""])
async def test_what_is_no_sequence_number_is_refused(session: Caller, text: str) -> None:
    reply = await session("POST", PATH, body_of(), headers={"X-Roost-After": text})

    assert (reply.status, reply.slug) == (400, "invalid-api-params")
    assert "X-Roost-After" in reply.body["msg"]


async def test_a_number_that_the_run_has_not_reached_leaves_the_cursor(session: Caller) -> None:
    await session("POST", f"{PATH}/runs", {"run_id": "r1", "code": "print('a')\ninput()"})
    while (await session("GET", f"{PATH}/runs/r1")).body["prompt"] != 1:
        await asyncio.sleep(0.01)

    ahead = await session("POST", PATH, body_of(), headers={"X-Roost-After": "999"})
    plain = await session.execute("class-7", mode="continue", run_id="r1")

    assert (ahead.body["result"]["console"], ahead.headers["X-Roost-Seq"]) == ([], "999")
    assert text_of(plain) == "a\n"


async def test_a_number_beyond_the_end_of_a_run_gets_its_end(session: Caller) -> None:
    await a_run_that_has_ended(session, "1")

    beyond = await session("POST", PATH, body_of(), headers={"X-Roost-After": "999"})

    assert beyond.body["result"]["status"] == "finished"
    assert [kind for kind, _ in beyond.body["result"]["console"]] == ["stderr"]


async def test_an_answer_that_broke_off_comes_again(session: Caller, relay: Relay) -> None:
    """The server knows: it could not write all of it."""
    await a_run_that_has_ended(session, LONG)
    relay.cuts.append(Cut(down=1000))
    with pytest.raises(aiohttp.ClientError):
        await through(relay, session).execute("class-7", mode="continue", run_id="r1")

    assert await polled_to_the_end(session) == WRITTEN


async def test_an_answer_that_was_not_acknowledged_comes_again(session: Caller) -> None:
    """The answer was written whole, into the server's kernel; the client's has no room for it."""
    text = "y" * 60_000 + "\n"
    await a_run_that_has_ended(session, f"print({text[:-1]!r})")

    async with Connection(session, receive_bytes=4096) as client:
        await client.poll()
        assert (await client.read(12)) == b"HTTP/1.1 200"

    assert await polled_to_the_end(session) == text


async def test_an_answer_on_a_connection_that_was_replaced_comes_again(session: Caller) -> None:
    """The older connection is still open; nobody reads it."""
    text = "y" * 60_000 + "\n"
    await a_run_that_has_ended(session, f"print({text[:-1]!r})")

    async with Connection(session, receive_bytes=4096) as client:
        await client.poll()
        assert (await client.read(12)) == b"HTTP/1.1 200"

        assert await polled_to_the_end(session) == text


async def test_an_answer_to_a_client_that_has_gone_meanwhile_comes_again(session: Caller) -> None:
    """1. a poll waits; 2. its client goes; 3. there is output; 4. the next poll gets it."""
    await session("POST", f"{PATH}/runs", {"run_id": "r1", "code": "print('Hello', input())"})
    asked = await session.execute("class-7", mode="continue", run_id="r1")
    await session("POST", f"{PATH}/runs", {"run_id": "r2", "code": "print('behind')"})
    async with Connection(session) as client:
        await client.poll("r2")
        await session("GET", f"{PATH}/runs/r2")
    await session.execute("class-7", "Al", "input", "r1")

    assert asked["status"] == "waiting-input"
    assert await polled_to_the_end(session, "r2") == "behind\n"


async def test_a_poll_on_the_same_connection_proves_that_the_answer_before_arrived(
    session: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where acknowledgements are still on their way, and nobody waits for them."""
    monkeypatch.setattr(deliveries, "ACK_WAIT_S", 0)
    await a_run_that_has_ended(session, LONG)

    async with Connection(session, receive_bytes=1 << 15) as client:
        await client.poll()
        head = await client.read(12)
        await client.poll()
        content = head
        while content.count(b"HTTP/1.1 200") < 2 or not content.endswith(b"}}"):
            content += await client.read(1 << 20)

    first, second = (piece.partition(b"\r\n\r\n")[2] for piece in content.split(b"HTTP/1.1 200 OK")[1:])
    rest = await polled_to_the_end(session)
    parts = [text_of(json.loads(part)["result"]) for part in (first, second)]
    assert "".join(parts) + rest == WRITTEN


async def test_the_window_that_remains(session: Caller) -> None:
    """What the client's kernel acknowledged and its program never read, the plain poll does not send again."""
    await a_run_that_has_ended(session, "print('a')")

    async with Connection(session) as client:
        await client.poll()
        await client.arrived(b"}}")
    plain = await session.execute("class-7", mode="continue", run_id="r1")
    exact = await session("POST", PATH, body_of(), headers={"X-Roost-After": "0"})

    assert (plain["status"], plain["console"]) == ("finished", [])
    assert text_of(exact.body["result"]) == "a\n"


@pytest.mark.filterwarnings("ignore:the server is newer")
async def test_the_sdk_gets_all_of_a_run_over_connections_that_break(session: Caller, relay: Relay) -> None:
    """Each cut but those of a start: a start without a run id cannot be recognised."""
    target = session.target
    config = APIConfig(endpoint=relay.endpoint, access_key=target.access_key, secret_key=target.secret_key)
    at_once = len(POLL_AGAIN_S) - 1  # a kept connection that breaks may take one try
    async with AsyncSession(config=config) as sdk:
        compute = sdk.ComputeSession("class-7")
        asked = await compute.execute(code=f"input()\n{LONG}")
        while asked["status"] == "continued":
            asked = await compute.execute(asked["runId"], "", mode="continue")
        parts = [await compute.execute(asked["runId"], "go", mode="input")]
        cuts = [*CUTS]
        while parts[-1]["status"] != "finished":
            relay.cuts.extend(cuts[:at_once])
            cuts = cuts[at_once:]
            relay.drop()
            parts.append(await compute.execute(asked["runId"], "", mode="continue"))

    assert cuts == []
    assert "".join(map(text_of, parts)) == WRITTEN
