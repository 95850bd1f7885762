"""Restarts of real sandboxes: what is lost, what is kept, and what a restart that broke off leaves."""

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from roost.agent.supervisor import LocalAgent
from roost.client.config import APIConfig
from roost.client.handle import async_session
from roost.client.session import AsyncSession
from roost.runtimes.base import Place, Runtime, SandboxHandle
from roost.runtimes.bubblewrap import BubblewrapRuntime
from roost.runtimes.keeper import KeeperClient
from roost.wire.errors import AgentError, SessionNotFound, SessionNotRunning
from roost.wire.runs import Event, EventKind, RunSpec, RunState, RunStatus
from roost.wire.sandboxes import SandboxSpec, SandboxState
from tests.agents import end, end_of, events_of, output, run
from tests.integration.test_agent import a_spec
from tests.servers import Caller

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)

STARTED = 'print("here", flush=True)\nimport time\ntime.sleep(600)'


class RefusingRuntime(BubblewrapRuntime):
    """Launches while it is let."""

    may_launch = True

    async def launch(self, spec: SandboxSpec, place: Place, keeper: KeeperClient) -> SandboxHandle:
        if not self.may_launch:
            raise AgentError("not today")
        return await super().launch(spec, place, keeper)


def with_runtime(data_dir: Path, runtime: Runtime) -> LocalAgent:
    return LocalAgent(data_dir, {runtime.name: runtime})


def lost(events: list[Event]) -> bool:
    return bool(events[0].kind is EventKind.STARTED and events[0].data["state_lost"])


@pytest.mark.parametrize("runtime", ["bubblewrap", "process"])
async def test_a_restart_loses_variables_and_keeps_files_uid_and_environment(agent: LocalAgent, runtime: str) -> None:
    spec = msgspec.structs.replace(a_spec(runtime), environ={"A": "1"})
    await agent.launch(spec)
    session_id = spec.session_id
    first = await run(agent, session_id, "x = 20; print(open('kept', 'w').write('yes'))", "r1")
    before = agent._sandboxes.load(session_id)

    info = await agent.restart(session_id)

    after = agent._sandboxes.load(session_id)
    look = "import os; print('x' in globals(), open('kept').read(), os.environ['A']); open('kept', 'a').write('!')"
    second = await run(agent, session_id, look, "r2")
    third = await run(agent, session_id, "1", "r3")
    assert (info.state, info.session_id) == (SandboxState.RUNNING, session_id)
    assert (before.uid, before.spec) == (after.uid, after.spec)
    assert before.init_pid != after.init_pid
    assert output(second) == "False yes 1\n"
    assert [lost(events) for events in (first, second, third)] == [False, True, False]
    assert await events_of(agent, session_id, "r1") == first


async def test_runs_that_had_not_ended_end_with_the_restart_and_say_so(agent: LocalAgent) -> None:
    spec = a_spec()
    await agent.launch(spec)
    await agent.start(spec.session_id, RunSpec(run_id="busy", code=STARTED))
    await agent.start(spec.session_id, RunSpec(run_id="behind", code="1"))
    for after in range(2):  # its start, and what it wrote
        await agent.read(spec.session_id, "busy", after=after, wait_s=20)

    await agent.restart(spec.session_id)

    for run_id in ("busy", "behind"):
        ended = await end_of(agent, spec.session_id, run_id)
        assert (ended.status, ended.reason and ended.reason.code) == (RunStatus.SANDBOX_LOST, "session-restarted")
    again = await agent.start(spec.session_id, RunSpec(run_id="busy", code=STARTED))
    assert (again.created, again.state) == (False, RunState.ENDED)
    assert output(await run(agent, spec.session_id, "print('next')")) == "next\n"


async def test_a_restart_before_any_run_loses_no_state(agent: LocalAgent) -> None:
    spec = a_spec()
    await agent.launch(spec)

    await agent.restart(spec.session_id)

    assert not lost(await run(agent, spec.session_id, "1"))


async def test_what_a_restart_lost_is_told_also_after_the_agent_came_back(data_dir: Path) -> None:
    first, spec = LocalAgent(data_dir), a_spec()
    await first.open()
    await first.launch(spec)
    await run(first, spec.session_id, "x = 20; print('a')", "r1")
    await first.restart(spec.session_id)
    await first.restart(spec.session_id)
    await first.aclose()

    second = LocalAgent(data_dir)
    await second.open()
    try:
        events = await run(second, spec.session_id, "print('b')", "r2")
        assert lost(events)
        assert output(events) == "b\n"
        assert [one.run_id for one in await second.runs(spec.session_id)] == ["r1", "r2"]
    finally:
        await end(second)


async def test_no_process_of_the_old_sandbox_lives_on_and_its_end_is_no_news(agent: LocalAgent) -> None:
    spec = a_spec()
    lasting = set(agent._sandboxes._tasks)
    await agent.launch(spec)
    await run(agent, spec.session_id, "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)")
    old = agent._sandboxes.load(spec.session_id)

    await agent.restart(spec.session_id)
    # What the keeper tells of the old one may come at any time.
    agent._sandboxes._on_exit(
        {"dir": str(agent._sandboxes.folder / spec.session_id), "pid": old.pid, "exit_code": None, "signal": 9}
    )
    await asyncio.gather(*agent._sandboxes._tasks - lasting)

    assert not Path(f"/proc/{old.init_pid}").exists()
    assert [one.state for one in await agent.sandboxes()] == [SandboxState.RUNNING]
    assert agent._sandboxes.ended.empty()


async def test_a_restart_that_fails_keeps_the_home_until_the_next_one(data_dir: Path) -> None:
    runtime, spec = RefusingRuntime(), a_spec()
    first = with_runtime(data_dir, runtime)
    await first.open()
    await first.launch(spec)
    await run(first, spec.session_id, "open('kept', 'w').write('yes')", "r1")
    uid = first._sandboxes.load(spec.session_id).uid
    runtime.may_launch = False

    with pytest.raises(AgentError, match="not today"):
        await first.restart(spec.session_id)
    left = [one.state for one in await first.sandboxes()]
    with pytest.raises(SessionNotRunning):
        await first.start(spec.session_id, RunSpec(run_id="r2", code="1"))
    await first.aclose()
    second = LocalAgent(data_dir)
    await second.open()
    try:
        found = [one.state for one in await second.sandboxes()]
        await second.restart(spec.session_id)
        events = await run(second, spec.session_id, "print(open('kept').read())", "r2")

        assert left == found == [SandboxState.RESTARTING]
        assert await second.lost() == []
        assert (output(events), lost(events)) == ("yes\n", True)
        assert second._sandboxes.load(spec.session_id).uid == uid
    finally:
        await end(second)


async def test_a_restart_that_is_cancelled_leaves_no_process_and_can_be_destroyed(data_dir: Path) -> None:
    runtime, spec = HangingRuntime(), a_spec()
    agent = with_runtime(data_dir, runtime)
    await agent.open()
    try:
        await agent.launch(spec)
        runtime.hangs = True

        restarting = asyncio.create_task(agent.restart(spec.session_id))
        await runtime.launching.wait()
        restarting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await restarting
        left = [one.state for one in await agent.sandboxes()]
        await agent.destroy(spec.session_id)

        assert left == [SandboxState.RESTARTING]
        assert await agent.sandboxes() == []
        assert list(agent._sandboxes.folder.iterdir()) == []
    finally:
        await end(agent)


class HangingRuntime(BubblewrapRuntime):
    """Launches, and then never says so."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs = False
        self.launching = asyncio.Event()

    async def launch(self, spec: SandboxSpec, place: Place, keeper: KeeperClient) -> SandboxHandle:
        handle = await super().launch(spec, place, keeper)
        if self.hangs:
            self.launching.set()
            await asyncio.Event().wait()
        return handle


async def test_what_never_was_and_what_is_gone_cannot_be_restarted(agent: LocalAgent) -> None:
    spec = a_spec()
    await agent.launch(spec)
    await agent.destroy(spec.session_id)

    with pytest.raises(SessionNotRunning):
        await agent.restart(spec.session_id)
    with pytest.raises(SessionNotFound):
        await agent.restart("never")


async def test_a_patch_restarts_a_session_and_its_history_says_so(server: Caller) -> None:
    await server("POST", "/session", {"name": "class-7", "image": "python"})
    await server("POST", "/session/class-7/runs", {"run_id": "r1", "code": "x = 20; print(x, file=open('kept', 'w'))"})
    await server.events("class-7", "r1")
    started = await server("POST", "/session/class-7/runs", {"run_id": "busy", "code": "import time; time.sleep(600)"})

    reply = await server("PATCH", "/session/class-7")
    again = await server("PATCH", "/kernel/class-7", params={"owner_access_key": server.target.access_key or ""})
    code = "print('x' in globals(), open('kept').read())"
    await server("POST", "/session/class-7/runs", {"run_id": "after", "code": code})
    events = await server.events("class-7", "after")
    told = await server.execute("class-7", mode="continue", run_id="after")
    busy = (await server("GET", "/session/class-7/runs/busy")).body
    history = [one["code"] for one in (await server("GET", "/session/class-7/history")).body]
    info = (await server("GET", "/session/class-7")).body

    assert (started.status, reply.status, reply.body, again.status) == (201, 204, b"", 204)
    assert "".join(json.loads(one.data) for one in events if one.event == "stdout") == "False 20\n\n"
    assert "started anew" in told["console"][0][1]
    assert (busy["status"], busy["reason"]["code"]) == ("sandbox-lost", "session-restarted")
    assert history[-4:] == ["session-restarting", "session-restarted"] * 2
    assert (info["status"], info["statusInfo"]) == ("RUNNING", "")


async def test_who_reads_a_run_hears_of_the_restart(server: Caller) -> None:
    await server("POST", "/session", {"name": "class-7", "image": "python"})
    await server("POST", "/session/class-7/runs", {"run_id": "busy", "code": "input()"})
    reading = asyncio.create_task(server.events("class-7", "busy"))

    await server("PATCH", "/session/class-7")

    last = (await reading)[-1]
    assert (last.event, json.loads(last.data)["reason"]["code"]) == ("end", "session-restarted")


async def test_a_restart_of_what_is_not_there_is_refused(server: Caller) -> None:
    missing = await server("PATCH", "/session/nothing")
    unknown = await server("PATCH", "/session/nothing", params={"how": "hard"})

    assert (missing.status, missing.slug) == (404, "session-not-found")
    assert (unknown.status, unknown.slug) == (400, "invalid-api-params")


async def test_a_restart_that_fails_names_itself(server: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    await server("POST", "/session", {"name": "class-7", "image": "python"})

    async def refuse(*_: object) -> SandboxHandle:
        raise AgentError("not today")

    with monkeypatch.context() as patch:
        patch.setattr(BubblewrapRuntime, "launch", refuse)
        reply = await server("PATCH", "/session/class-7")
    info = (await server("GET", "/session/class-7")).body
    started = await server("POST", "/session/class-7/runs", {"code": "1"})
    ended = await server("DELETE", "/session/class-7", params={"forced": "true"})

    assert (reply.status, reply.slug) == (500, "kernel-restart-failed")
    assert "not today" in reply.body["msg"]
    assert (info["status"], info["reason"]["code"]) == ("ERROR", "agent-error")
    assert (started.status, ended.status) == (409, 200)


@pytest.mark.filterwarnings("ignore:the server is newer")
async def test_both_clients_restart_sessions(server: Caller) -> None:
    target = server.target
    config = APIConfig(endpoint=target.endpoint, access_key=target.access_key, secret_key=target.secret_key)
    async with async_session("class-7", target=target) as handle:
        await handle.run("x = 20; open('kept', 'w').write('yes')")
        await handle.restart()
        first = await handle.run("print('x' in globals(), open('kept').read())")
        await handle.run("y = 1")
        async with AsyncSession(config=config) as api:
            await api.ComputeSession("class-7").restart()
        second = await handle.run("print('y' in globals())")

    assert (first.stdout, second.stdout) == ("False yes\n", "False\n")


async def test_a_session_that_closed_its_home_to_itself_is_restarted(agent: LocalAgent) -> None:
    spec = a_spec()
    await agent.launch(spec)
    await run(agent, spec.session_id, "import os; os.chmod('/home/work', 0); os._exit(0)", "r1")
    assert output(await run(agent, spec.session_id, "print(1)")) == "1\n"

    await agent.restart(spec.session_id)

    assert output(await run(agent, spec.session_id, "print(open('a', 'w').write('a'))", "r2")) == "1\n"
