"""Batch runs, completions, interrupts and limits of time over HTTP (spec/execution.md §2 to §7)."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from roost.agent import session_runs
from roost.agent.interpreters import find_interpreters
from roost.agent.supervisor import LocalAgent
from roost.client.api import build_headers, build_url
from roost.wire.errors import InvalidParameters
from roost.wire.ids import new_session_id
from roost.wire.runs import BatchStages, RunSpec
from roost.wire.sandboxes import SandboxSpec
from tests.servers import Caller

STUBBORN = """
import time
while True:
    try:
        print('on')
        while True: time.sleep(1)
    except KeyboardInterrupt: print('no')
"""


async def a_session(server: Caller, name: str = "work-1", **more: Any) -> str:
    reply = await server("POST", "/session", {"name": name, "image": "python", **more})
    assert reply.status == 201, reply.body
    return name


async def start(server: Caller, ref: str, run_id: str, **body: Any) -> None:
    reply = await server("POST", f"/session/{ref}/runs", {"run_id": run_id, **body})
    assert reply.status == 201, reply.body


async def until_output(server: Caller, ref: str, run_id: str) -> None:
    """Wait until a run of ours has written something."""
    async with asyncio.timeout(30):
        while not (await server.execute(ref, mode="continue", run_id=run_id))["console"]:
            pass


async def until_prompt(server: Caller, ref: str, run_id: str) -> None:
    """Wait until a run of ours asks for input."""
    async with asyncio.timeout(30):
        while (await server("GET", f"/session/{ref}/runs/{run_id}")).body["prompt"] is None:
            pass


async def ended(server: Caller, ref: str, run_id: str) -> dict[str, Any]:
    [*_, end] = await server.events(ref, run_id)
    data: dict[str, Any] = json.loads(end.data)
    return data


async def test_a_batch_run_is_polled_stage_by_stage(server: Caller) -> None:
    ref = await a_session(server)
    await server("PUT", f"/session/{ref}/files/main.py", data=b"print('hello')")
    body = {"mode": "batch", "code": "", "runId": None, "options": {"clean": "*", "build": "echo b", "exec": "*"}}

    result = (await server("POST", f"/session/{ref}", body)).body["result"]
    seen = [(result["status"], result["exitCode"], result["console"])]
    while seen[-1][0] != "finished":
        result = await server.execute(ref, mode="continue", run_id=result["runId"])
        if result["status"] != "continued" or result["console"]:
            seen.append((result["status"], result["exitCode"], result["console"]))

    assert seen[0] == ("clean-finished", 0, [])
    assert seen[1] == ("build-finished", 0, [["stdout", "b\n"]])
    assert seen[-1][:2] == ("finished", 0)
    assert [item for _, _, console in seen[2:] for item in console] == [["stdout", "hello\n"]]


async def test_a_batch_run_is_streamed_with_its_input(server: Caller) -> None:
    ref = await a_session(server)
    url = build_url(server.target, f"/stream/session/{ref}/execute", None)
    headers = build_headers(server.target, "GET", url, None, datetime.now(UTC))
    start = {"mode": "batch", "options": {"exec": "read x; echo got $x; exit 3"}}
    told = []

    async with server.http.ws_connect(url, headers=headers) as socket:
        await socket.send_json(start)
        async for message in socket:
            part = message.json()
            told.append((part["status"], part["exitCode"]))
            if part["status"] == "waiting-input":
                await socket.send_str("it")
            if part["status"] == "finished":
                console = part["console"]

    assert [one for one in told if one[0] != "continued"] == [
        ("clean-finished", 0),
        ("build-finished", 0),
        ("waiting-input", None),
        ("finished", 3),
    ]
    assert console[-1:] in ([["stdout", "got it\n"]], [])


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"mode": "batch", "code": "1+1"}, "no code"),
        ({"mode": "query", "options": {"exec": "ls"}}, "batch"),
        ({"mode": "fast"}, "validation"),
        ({"mode": "query", "options": {"timeout_s": 0}}, "validation"),
    ],
)
async def test_bad_runs_are_refused(server: Caller, body: dict[str, Any], word: str) -> None:
    ref = await a_session(server)

    reply = await server("POST", f"/session/{ref}/runs", body)

    assert (reply.status, word in reply.body["msg"]) == (400, True), reply.body


async def test_names_are_completed_in_each_form(server: Caller) -> None:
    ref = await a_session(server)
    await server.execute(ref, "alphabet = 1")
    options = {"row": 0, "col": 9, "line": "print(alp", "post": ")"}

    dedicated = await server("POST", f"/session/{ref}/complete", {"code": "print(alp)", "options": options})
    mode = await server("POST", f"/session/{ref}", {"mode": "complete", "runId": None, "code": "alp", "options": {}})
    malformed = await server("POST", f"/session/{ref}", {"code": "print(alp)", "options": {"row": 0, "col": 9}})
    no_cursor = {"row": 0, "col": 0, "line": "", "post": ""}
    default = await server("POST", f"/session/{ref}/complete", {"code": "alp", "options": no_cursor})
    nothing = await server("POST", f"/session/{ref}/complete", {"code": "", "options": None})

    for reply in (dedicated, mode, malformed, default):
        assert (reply.status, reply.body) == (200, {"result": {"status": "finished", "completions": ["alphabet"]}})
    assert nothing.body["result"]["completions"] == []


async def test_an_interrupt_tells_what_came_of_it(server: Caller) -> None:
    ref = await a_session(server)
    await start(server, ref, "soft", code="print('on')\nimport time; time.sleep(60)")
    await until_output(server, ref, "soft")
    await start(server, ref, "queued", code="1")

    dequeued = await server("POST", f"/session/{ref}/runs/queued/interrupt")
    soft = await server("POST", f"/session/{ref}/runs/soft/interrupt", {"grace_s": 20})
    again = await server("POST", f"/session/{ref}/runs/soft/interrupt", {"grace_s": 1})
    await start(server, ref, "hard", code=STUBBORN)
    await until_output(server, ref, "hard")
    hard = await server("POST", f"/session/{ref}/runs/hard/interrupt", {"grace_s": 0.2})

    outcomes = [reply.body["outcome"] for reply in (dequeued, soft, again, hard)]
    assert outcomes == ["dequeued", "interrupted", "finished", "escalated"]
    assert (await ended(server, ref, "hard"))["reason"]["code"] == "interrupt-escalated"
    assert (await ended(server, ref, "hard"))["cost"]["wall_s"] > 0
    await start(server, ref, "after", code="print(6 * 7)")
    after = [json.loads(message.data) for message in await server.events(ref, "after") if message.event == "stdout"]
    assert "".join(after) == "42\n"


async def test_an_interrupted_batch_run_does_not_count_as_done(server: Caller) -> None:
    ref = await a_session(server)
    program = "python -uc 'import time; print(1); time.sleep(60)'"
    await start(server, ref, "long", mode="batch", options={"exec": program})
    async with asyncio.timeout(30):
        while (result := await server.execute(ref, mode="continue", run_id="long"))["console"] == []:
            pass

    await server("POST", f"/session/{ref}/interrupt")
    while result["status"] != "finished":
        result = await server.execute(ref, mode="continue", run_id="long")

    assert result["exitCode"] == 130


async def test_a_run_may_have_a_limit_of_time(server: Caller) -> None:
    ref = await a_session(server)
    await start(server, ref, "long", code=STUBBORN, options={"timeout_s": 0.3})

    end = await ended(server, ref, "long")

    assert (end["status"], end["exit_code"], end["reason"]["code"]) == ("exec-timeout", 124, "exec-timeout")
    assert end["reason"]["limit"] == 300
    assert (await server("GET", f"/session/{ref}")).body["status"] == "RUNNING"


async def test_a_session_ends_with_a_run_beyond_its_limit(server: Caller) -> None:
    ref = await a_session(server, config={"resource_opts": {"exec_timeout": "1s"}})
    session = (await server("GET", "/session")).body[0]["id"]

    result = await server.execute(ref, "while True: pass")
    while result["status"] == "continued":
        result = await server.execute(session, mode="continue", run_id=result["runId"])
    async with asyncio.timeout(30):
        while (state := (await server("GET", "/session", params={"status": "all"})).body[0]["status"]) != "TERMINATED":
            pass

    assert result["status"] == "exec-timeout"
    assert state == "TERMINATED"
    history = (await server("GET", f"/session/{session}/history")).body
    assert any("longer than 1 seconds" in one["sentence"] for one in history)


async def test_code_and_input_may_be_long(server: Caller) -> None:
    ref = await a_session(server)
    blank = "é" * (7 << 20)  # 14 MiB of UTF-8
    await start(server, ref, "long", code=f"text = '{blank}'\nprint(len(text), len(input()))")
    await until_prompt(server, ref, "long")

    answered = await server("POST", f"/session/{ref}/runs/long/input", {"text": blank})
    again = await server("POST", f"/session/{ref}/runs", {"run_id": "long", "code": "text = 2"})
    more = await server("POST", f"/session/{ref}/runs", {"run_id": "more", "code": "#" * (21 << 20)})

    assert (await ended(server, ref, "long"))["exit_code"] == 0
    assert (answered.status, again.status, more.status) == (204, 409, 400)
    assert "upload it" in more.body["hint"]


async def test_a_session_keeps_so_many_runs_waiting(server: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_runs, "MAX_WAITING", 2)
    ref = await a_session(server)
    await start(server, ref, "first", code="print('on'); input()")
    await until_output(server, ref, "first")
    for number in range(2):
        await start(server, ref, f"wait-{number}", code="1")

    refused = await server("POST", f"/session/{ref}/runs", {"run_id": "more", "code": "1"})
    known = await server("POST", f"/session/{ref}/runs", {"run_id": "wait-1", "code": "1"})
    await server("POST", f"/session/{ref}/runs/first/input", {"text": ""})
    await ended(server, ref, "wait-1")

    assert (refused.status, refused.slug, known.status) == (429, "rate-limit-exceeded", 200)
    await start(server, ref, "more", code="1")


async def test_an_older_runner_is_not_asked_for_what_it_cannot_do(agent: LocalAgent) -> None:
    spec = SandboxSpec(session_id=new_session_id(), interpreter=find_interpreters()[0])
    await agent.launch(spec)
    agent._sandboxes.live[spec.session_id]._abilities = frozenset()

    with pytest.raises(InvalidParameters, match="batch"):
        await agent.start(spec.session_id, RunSpec(run_id="b", code="", mode="batch", batch=BatchStages()))

    assert await agent.complete(spec.session_id, "pri") == []
