"""Running code over a WebSocket (spec/execution.md §7)."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from roost.client.api import build_headers, build_url
from roost.server.http import stream
from tests.servers import Caller, a_server


@pytest.fixture
async def session(server: Caller) -> Caller:
    """A server with a running session `class-7`."""
    assert (await server("POST", "/session", {"name": "class-7", "image": "python"})).status == 201
    return server


@asynccontextmanager
async def connected(
    server: Caller, ref: str = "class-7", **query: str
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    url = build_url(server.target, f"/stream/session/{ref}/execute", query)
    headers = build_headers(server.target, "GET", url, None, datetime.now(UTC))
    async with server.http.ws_connect(url, headers=headers) as socket:
        yield socket


async def frames(socket: aiohttp.ClientWebSocketResponse, *answers: str) -> list[dict[str, Any]]:
    """Every frame up to the close; prompts are answered in turn."""
    seen: list[dict[str, Any]] = []
    left = list(answers)
    async with asyncio.timeout(30):
        async for message in socket:
            seen.append(json.loads(message.data))
            if seen[-1]["status"] == "waiting-input":
                await socket.send_str(left.pop(0))
    return seen


async def state_of(server: Caller, run_id: str) -> str:
    return str((await server("GET", f"/session/class-7/runs/{run_id}")).body["state"])


async def test_a_run_is_streamed_and_its_prompts_are_answered(session: Caller) -> None:
    async with connected(session) as socket:
        await socket.send_json({"code": "print('a')\nprint('hi', input('who? '))", "mode": "query", "options": {}})
        seen = await frames(socket, "Ann")

    assert [one["status"] for one in seen if one["status"] != "continued"] == ["waiting-input", "finished"]
    text = "".join(data for one in seen for _, data in one["console"])
    assert text == "a\nwho? hi Ann\n"
    assert (seen[-1]["exitCode"], seen[-1]["files"]) == (0, [])
    assert {one["options"] and one["options"]["is_password"] for one in seen} == {None, False}


async def test_lines_may_be_typed_ahead(session: Caller) -> None:
    async with connected(session) as socket:
        await socket.send_json({"code": "print([input(), input()])", "mode": "query"})
        for line in ("a", "b"):
            await socket.send_str(line)
        seen = [json.loads(message.data) async for message in socket]

    assert seen[-1]["status"] == "finished"
    assert "".join(data for one in seen for _, data in one["console"]) == "['a', 'b']\n"


@pytest.mark.parametrize("start", ["{", "[]", '{"code": "1"}', '{"code": 1, "mode": "query"}', '{"mode": "nope"}'])
async def test_a_start_that_makes_no_sense_is_told_in_a_frame(session: Caller, start: str) -> None:
    async with connected(session) as socket:
        await socket.send_str(start)
        [frame] = await frames(socket)

    assert frame["status"] == "error"
    assert frame["msg"]


async def test_what_is_wrong_with_options_is_told_in_a_frame(session: Caller) -> None:
    async with connected(session) as socket:
        await socket.send_json({"mode": "batch", "options": {"nope": 1}})
        [frame] = await frames(socket)

    assert "nope" in frame["msg"]


async def test_what_is_wrong_before_the_handshake_is_plain_http(session: Caller) -> None:
    for ref, query, status in (("nobody", {}, 404), ("class-7", {"on_disconnect": "continue"}, 400)):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with connected(session, ref, **query):
                pass
        assert refused.value.status == status


@pytest.mark.parametrize("abruptly", [True, False])
async def test_a_client_that_goes_takes_its_run_along(session: Caller, abruptly: bool) -> None:
    async with connected(session, run_id="r1") as socket:
        await socket.send_json({"code": "print(1, flush=True)\nwhile True: pass", "mode": "query"})
        await socket.receive()
        if abruptly:
            transport = socket.get_extra_info("socket")
            transport.shutdown(2)

    events = await session.events("class-7", "r1")

    assert json.loads(events[-1].data)["status"] == "interrupted"


async def test_a_client_that_goes_is_heard_behind_lines_that_were_typed_ahead(session: Caller) -> None:
    async with connected(session) as socket:
        await socket.send_json({"code": "import time; print('up'); time.sleep(60)", "mode": "query"})
        for number in range(1000):
            await socket.send_str(f"line {number}")
        assert "up" in (await socket.receive()).data

    assert (await session.execute("class-7", "'free'"))["console"] == [["stdout", "'free'"]]


async def test_there_is_an_end_to_what_may_be_typed_ahead(session: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "TYPED_AHEAD", 2)
    async with connected(session) as socket:
        await socket.send_json({"code": "import time; time.sleep(60)", "mode": "query"})
        for number in range(3):
            await socket.send_str(f"line {number}")
        seen = await frames(socket)

    assert (seen[-1]["status"], "prompts" in seen[-1]["msg"]) == ("error", True)
    assert (await session.execute("class-7", "'free'"))["console"] == [["stdout", "'free'"]]


async def test_a_named_run_may_outlive_its_client(session: Caller) -> None:
    async with connected(session, run_id="r1", on_disconnect="continue") as socket:
        await socket.send_json({"code": "print(1, flush=True)\nprint(input())", "mode": "query"})
        await socket.receive()

    while await state_of(session, "r1") != "waiting":
        await asyncio.sleep(0.01)
    await session("POST", "/session/class-7/runs/r1/input", {"text": "still here"})
    events = await session.events("class-7", "r1")

    assert "".join(json.loads(one.data) for one in events if one.event == "stdout") == "1\nstill here\n"


async def test_a_run_whose_session_is_ended_says_so(session: Caller) -> None:
    async with connected(session) as socket:
        await socket.send_json({"code": "input()", "mode": "query"})
        await socket.receive()
        await session("DELETE", "/session/class-7")
        seen = await frames(socket, "x")

    assert seen[-1]["status"] == "server-restarting"


async def test_a_server_that_stops_says_so(data_dir: Path) -> None:
    async with aiohttp.ClientSession() as http:
        async with a_server(data_dir) as server:
            await server("POST", "/session", {"name": "class-7", "image": "python"})
            caller = Caller(server.target, http)
            url = build_url(caller.target, "/stream/session/class-7/execute")
            headers = build_headers(caller.target, "GET", url, None, datetime.now(UTC))
            socket = await http.ws_connect(url, headers=headers)
            await socket.send_json({"code": "input()", "mode": "query"})
            assert json.loads((await socket.receive()).data)["status"] == "waiting-input"

        last = await socket.receive()

    assert json.loads(last.data)["status"] == "server-restarting"


async def test_a_program_that_is_too_large_is_refused_and_the_next_one_runs(session: Caller) -> None:
    by_poll = await session("POST", "/session/class-7", {"mode": "query", "code": "\n" * (11 << 20), "runId": None})
    async with connected(session) as socket:
        await socket.send_json({"code": f"len({'y' * (15 << 20)!r})", "mode": "query"})
        fits = await frames(socket)

    assert (by_poll.status, by_poll.slug) == (400, "invalid-api-params")
    assert "20971520 are possible" in by_poll.body["msg"]
    assert [item for frame in fits for item in frame["console"]] == [["stdout", str(15 << 20)]]
