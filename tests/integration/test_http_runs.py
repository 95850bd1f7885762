"""Runs over HTTP: the compatible poll (spec/execution.md §2 to §6) and our own endpoints."""

import asyncio
import json
from typing import Any

import pytest

from roost.client.sse import SSEMessage
from tests.servers import Caller


@pytest.fixture
async def session(server: Caller) -> Caller:
    """A server with a running session `class-7`."""
    reply = await server("POST", "/session", {"name": "class-7", "image": "python"})
    assert reply.status == 201
    return server


def written(events: list[SSEMessage]) -> str:
    return "".join(json.loads(one.data) for one in events if one.event == "stdout")


async def test_a_value_comes_as_stdout_after_what_was_written(session: Caller) -> None:
    code = 'import sys\nprint("out1")\nprint("err1", file=sys.stderr)\nprint("out2")\n1+1'

    result = await session.execute("class-7", code)

    assert result.pop("runId")
    assert result == {
        "status": "finished",
        "exitCode": 0,
        "options": None,
        "files": [],
        "console": [["stdout", "out1\n"], ["stderr", "err1\n"], ["stdout", "out2\n2"]],
    }


async def test_variables_stay_and_exceptions_are_no_errors_of_the_api(session: Caller) -> None:
    await session.execute("class-7", "x = 20")
    value = await session.execute("class-7", "x + 1")
    failed = await session.execute("class-7", "x / 0")

    assert value["console"] == [["stdout", "21"]]
    assert (failed["status"], failed["exitCode"]) == ("finished", 0)
    [[kind, text]] = failed["console"]
    assert kind == "stderr"
    assert text.count("ZeroDivisionError") == 1


async def test_input_is_asked_for_and_answered(session: Caller) -> None:
    asked = await session.execute("class-7", "import getpass\nprint('got', input('Who? '), getpass.getpass('PIN? '))")
    again = await session.execute("class-7", mode="continue", run_id=asked["runId"])
    secret = await session.execute("class-7", "Al", "input", asked["runId"])
    still_secret = await session.execute("class-7", mode="continue", run_id=asked["runId"])
    done = await session.execute("class-7", "abc", "user-input", asked["runId"])

    assert (asked["status"], asked["options"]) == ("waiting-input", {"is_password": False})
    assert asked["console"] == [["stdout", "Who? "]]
    assert (again["status"], again["console"]) == ("waiting-input", [])
    assert (secret["options"], secret["console"]) == ({"is_password": True}, [["stdout", "PIN? "]])
    assert (again["options"], still_secret["options"]) == ({"is_password": False}, {"is_password": True})
    assert (done["status"], done["console"]) == ("finished", [["stdout", "got Al abc\n"]])


async def test_a_long_run_is_polled_and_its_end_can_be_asked_for_again(session: Caller) -> None:
    code = "import time\nprint('a', flush=True)\ntime.sleep(0.3)\nprint('b')"

    parts = [await session.execute("class-7", code)]
    while parts[-1]["status"] == "continued":
        parts.append(await session.execute("class-7", mode="continue", run_id=parts[0]["runId"]))
    repeated = await session.execute("class-7", mode="continue", run_id=parts[0]["runId"])

    assert parts[0]["console"] == [["stdout", "a\n"]]
    assert "".join(text for part in parts for _, text in part["console"]) == "a\nb\n"
    assert (repeated["status"], repeated["exitCode"], repeated["console"]) == ("finished", 0, [])


async def test_a_newer_poll_takes_over(session: Caller) -> None:
    started = await session("POST", "/session/class-7/runs", {"code": "input()"})
    run_id = started.body["run_id"]
    assert (await session.execute("class-7", mode="continue", run_id=run_id))["status"] == "waiting-input"
    await session("POST", "/session/class-7/runs", {"run_id": "behind", "code": "print('b')"})

    older = asyncio.create_task(session.execute("class-7", mode="continue", run_id="behind"))
    newer = asyncio.create_task(session.execute("class-7", mode="continue", run_id="behind"))
    await asyncio.wait((older, newer), return_when=asyncio.FIRST_COMPLETED)
    await session("POST", f"/session/class-7/runs/{run_id}/input", {"eof": True})
    results = [await older, await newer]

    assert sorted(one["status"] for one in results) == ["continued", "finished"]
    assert [one["console"] for one in results if one["status"] == "finished"] == [[["stdout", "b\n"]]]


async def test_the_same_start_twice_is_one_run_and_other_code_is_refused(session: Caller) -> None:
    first = await session("POST", "/session/class-7/runs", {"run_id": "r1", "code": "print('once')"})
    again = await session("POST", "/session/class-7/runs", {"run_id": "r1", "code": "print('once')"})
    other = await session("POST", "/session/class-7/runs", {"run_id": "r1", "code": "print('twice')"})
    events = await session.events("class-7", "r1")

    assert (first.status, again.status, other.status) == (201, 200, 409)
    assert other.slug == "run-already-exists"
    assert written(events) == "once\n"


async def test_events_are_dense_and_go_on_after_any_of_them(session: Caller) -> None:
    await session("POST", "/session/class-7/runs", {"run_id": "r1", "code": "for i in range(5): print(i)\n'v'"})

    events = await session.events("class-7", "r1")
    for after in range(len(events) + 1):
        assert await session.events("class-7", "r1", after) == events[after:]

    assert [int(str(one.id)) for one in events] == list(range(1, len(events) + 1))
    assert [events[0].event, events[-2].event, events[-1].event] == ["started", "result", "end"]
    end = json.loads(events[-1].data)
    assert (end["status"], end["exit_code"]) == ("ok", 0)
    assert end["cost"]["cpu_s"] >= 0


async def test_prompts_are_answered_by_number_and_once(session: Caller) -> None:
    path = "/session/class-7/runs/r1"
    await session("POST", "/session/class-7/runs", {"run_id": "r1", "code": "print([input(), input()])"})
    while (await session("GET", path)).body["prompt"] != 1:
        await asyncio.sleep(0.01)

    answers = [await session("POST", f"{path}/input", {"prompt": 1, "text": text}) for text in ("a", "again")]
    early = await session("POST", f"{path}/input", {"prompt": 9, "text": "x"})
    both = await session("POST", f"{path}/input", {"prompt": 2, "text": "x", "eof": True})
    while (await session("GET", path)).body["prompt"] != 2:
        await asyncio.sleep(0.01)
    await session("POST", f"{path}/input", {"prompt": 2, "text": "b"})
    events = await session.events("class-7", "r1")

    assert [one.status for one in answers] == [204, 204]
    assert (early.status, both.status) == (400, 400)
    assert written(events) == "['a', 'b']\n"


async def test_an_interrupt_ends_a_run_and_says_what_it_did(session: Caller) -> None:
    await session("POST", "/session/class-7/runs", {"run_id": "r1", "code": "import time\ntime.sleep(60)"})
    while (await session("GET", "/session/class-7/runs/r1")).body["state"] != "running":
        await asyncio.sleep(0.01)

    outcome = await session("POST", "/session/class-7/runs/r1/interrupt")
    events = await session.events("class-7", "r1")
    late = await session("POST", "/session/class-7/runs/r1/interrupt")
    idle = await session("POST", "/session/class-7/interrupt")

    assert (outcome.body, late.body) == ({"outcome": "sent"}, {"outcome": "finished"})
    assert json.loads(events[-1].data)["status"] == "interrupted"
    assert idle.status == 204


async def test_logs_are_kept_after_the_end(session: Caller) -> None:
    result = await session.execute("class-7", "print('kept')")
    while result["status"] != "finished":
        result = await session.execute("class-7", mode="continue", run_id=result["runId"])
    alive = await session("GET", "/session/class-7/logs")
    await session("DELETE", "/session/class-7")

    dead = await session("GET", "/session/class-7/logs")
    runs = (await session("GET", "/session/class-7/runs")).body

    assert alive.body == dead.body == {"result": {"logs": "kept\n"}}
    assert [(one["state"], one["status"], one["exit_code"]) for one in runs] == [("ended", "ok", 0)]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"mode": "bogus", "code": "", "runId": None}, "mode"),
        ({"mode": "query", "code": ""}, "runId is missing"),
        ({"code": "", "runId": None}, "mode is missing"),
        ({"mode": "continue", "code": "", "runId": None}, "runId"),
        ({"mode": "continue", "code": "", "runId": "nobody"}, "nobody"),
        ({"mode": "input", "code": "x", "runId": "nobody"}, "nobody"),
        ({"mode": "continue", "code": "", "runId": ""}, "runId"),
        ({"mode": "query", "code": 5, "runId": None}, "code"),
        ({"mode": "query", "code": "", "runId": 5}, "runId"),
        ({"mode": "query", "code": "", "runId": "a/b"}, "run id"),
        ({"mode": "query", "code": "", "runId": ".."}, "run id"),
        ({"mode": ["query"], "code": "", "runId": None}, "mode"),
        ({"mode": "query", "code": "", "runId": None, "options": []}, "options"),
    ],
)
async def test_bad_calls_are_told_which_field_is_wrong(session: Caller, body: dict[str, Any], says: str) -> None:
    reply = await session("POST", "/session/class-7", body)

    assert (reply.status, reply.slug) == (400, "invalid-api-params")
    assert says in reply.body["msg"]


async def test_unknown_runs_and_sequence_numbers_are_problems(session: Caller) -> None:
    lost = await session("GET", "/session/class-7/runs/nobody")
    stream = await session("GET", "/session/class-7/runs/nobody/events")
    await session.execute("class-7", "1", run_id="r1")
    after = [
        (await session("GET", "/session/class-7/runs/r1/events", params={"after": text})).status
        for text in ("-1", "x", "1.5", "٣", "9" * 30)
    ]

    assert (lost.status, lost.slug, stream.status) == (404, "run-not-found", 404)
    assert after == [400] * 5


async def test_a_run_of_a_session_that_went_away_ends_with_130(session: Caller) -> None:
    started = await session.execute("class-7", "print('a', flush=True)\nimport time; time.sleep(60)")
    waiting = asyncio.create_task(session.execute("class-7", mode="continue", run_id=started["runId"]))
    await asyncio.sleep(0)
    await session("DELETE", "/session/class-7")

    result = await waiting

    assert (result["status"], result["exitCode"]) == ("finished", 130)
