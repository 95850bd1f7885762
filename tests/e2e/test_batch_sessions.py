"""Batch sessions and bootstrap scripts with a real server, which is killed in between."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from roost.runtimes.bubblewrap import BubblewrapRuntime
from tests.e2e.server_process import ServerProcess
from tests.servers import Caller

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)

END_S = 60.0


async def create(server: Caller, command: str, name: str = "job-1", **more: Any) -> str:
    body = {"name": name, "image": "python", "type": "batch", "startupCommand": command, **more}
    reply = await server("POST", "/session", body)
    assert reply.status == 201, reply.body
    return str(reply.body["sessionId"])


async def ended(server: Caller, session_id: str) -> dict[str, Any]:
    async with asyncio.timeout(END_S):
        while True:
            for session in (await server("GET", "/session", params={"status": "TERMINATED,CANCELLED"})).body:
                if session["id"] == session_id:
                    return dict(session)
            await server("GET", f"/session/{session_id}/runs/batch-job/events")  # ends with the run


async def logs(server: Caller, session_id: str) -> str:
    return str((await server("GET", f"/session/{session_id}/logs")).body["result"]["logs"])


async def test_a_command_runs_and_its_session_ends_with_a_result(server: Caller) -> None:
    good = await create(server, "echo $_BACKEND_BATCH_MODE > mode; cat mode; echo err >&2")
    bad = await create(server, "echo half; exit 3", name="job-2")

    success, failure = await ended(server, good), await ended(server, bad)

    assert (success["result"], failure["result"]) == ("SUCCESS", "FAILURE")
    assert success["reason"]["code"] == "task-finished"
    assert await logs(server, good) == "1\nerr\n"
    assert await logs(server, bad) == "half\n"


async def test_a_session_waits_for_what_it_depends_on(server: Caller) -> None:
    first = await create(server, "test -n '' || sleep 0.2; exit 0")
    second = await create(server, "echo after", name="job-2", dependencies=[first])
    third = await create(server, "exit 1", name="job-3", dependencies=["job-2"])
    fourth = await create(server, "echo never", name="job-4", dependencies=[third])

    assert (await ended(server, second))["result"] == "SUCCESS"
    assert (await ended(server, third))["result"] == "FAILURE"
    never = await ended(server, fourth)

    assert (never["status"], never["reason"]["code"]) == ("CANCELLED", "dependency-failed")


async def test_a_bootstrap_script_runs_before_the_session_does(server: Caller) -> None:
    script = "echo ready > flag\nexport X=1\n"
    body = {"name": "boot-1", "image": "python", "bootstrapScript": script}
    created = await server("POST", "/session", body)

    result = await server.execute("boot-1", "print(open('flag').read(), open('bootstrap.sh').read())")

    assert created.body["status"] == "RUNNING"
    assert result["console"] == [["stdout", f"ready\n {script}\n"]]


async def test_a_command_runs_once_whenever_the_server_dies(data_dir: Path) -> None:
    with ServerProcess(data_dir) as process:
        async with process.caller() as server:
            session_id = await create(server, "echo run >> count; read line; cat count; echo $line")
            async with asyncio.timeout(END_S):
                while (await server("GET", f"/session/{session_id}/runs/batch-job")).body.get("prompt") != 1:
                    pass
    with ServerProcess(data_dir) as process:
        async with process.caller() as server:
            await server("POST", f"/session/{session_id}/runs/batch-job/input", {"text": "over"})
    with ServerProcess(data_dir) as process:
        async with process.caller() as server:
            session = await ended(server, session_id)

            assert session["result"] == "SUCCESS"
            assert await logs(server, session_id) == "run\nover\n"


async def test_a_script_runs_once_whenever_the_server_dies(data_dir: Path) -> None:
    script = "echo run >> count\nread line\n"
    body = {"name": "boot-1", "image": "python", "bootstrapScript": script, "enqueueOnly": True}
    with ServerProcess(data_dir) as process:
        async with process.caller() as server:
            session_id = (await server("POST", "/session", body)).body["sessionId"]
            async with asyncio.timeout(END_S):
                while (await server("GET", f"/session/{session_id}/runs/bootstrap")).body.get("prompt") != 1:
                    pass
    with ServerProcess(data_dir) as process:
        async with process.caller() as server:
            info = await server("GET", f"/session/{session_id}")
            async with asyncio.timeout(END_S):
                waited = await server("POST", "/session", {"name": "boot-1", "image": "python", "maxWaitSeconds": 1})
            answer = await server("POST", f"/session/{session_id}/runs/bootstrap/input", {"text": "go"})
            reused = await server("POST", "/session", {"name": "boot-1", "image": "python"})
            result = await server.execute("boot-1", "print(open('count').read())")
            await server("DELETE", f"/session/{session_id}")

    assert (info.body["status"], waited.body["status"], answer.status) == ("PREPARING", "TIMEOUT", 204)
    assert (reused.body["status"], result["console"]) == ("RUNNING", [["stdout", "run\n\n"]])
