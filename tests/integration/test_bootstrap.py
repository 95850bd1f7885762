"""Bootstrap scripts over a real store and scripted runs: once in each sandbox, before the session is usable."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.server.domain.sessions import BOOTSTRAP
from roost.testing.engine import FakeEngine
from roost.wire.errors import AgentError
from roost.wire.reasons import Reason
from roost.wire.runs import RunEnd, RunStatus
from roost.wire.sessions import SessionState as S
from tests.worlds import ASKED, World, a_world, codes

SCRIPT = "echo ready > state\n"
DONE = RunEnd(status=RunStatus.OK, exit_code=0)
FAILED = RunEnd(status=RunStatus.ERROR, exit_code=7)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        await world.scheduler.open()
        yield world


async def test_a_session_runs_when_its_script_has_run(world: World) -> None:
    session = await world.create(bootstrap_script=SCRIPT)
    run = await world.agent.until_started(BOOTSTRAP)
    during = await world.ledger.get(session.id)
    await world.agent.finish(session.id, BOOTSTRAP, DONE)
    running = await world.until_state(session, S.RUNNING)

    assert world.agent.homes[session.id] == {"bootstrap.sh": SCRIPT.encode()}
    assert (run.mode, run.batch and run.batch.exec) == ("batch", "/bin/sh bootstrap.sh")
    assert (during.state, running.reason, running.status_data) == (S.PREPARING, None, {})


async def test_a_script_that_fails_is_told_and_the_session_runs(world: World) -> None:
    world.agent.script[BOOTSTRAP] = FAILED

    session = await world.until_state(await world.create(bootstrap_script=SCRIPT), S.RUNNING)

    assert session.reason is not None
    assert session.reason.code == session.status_data["bootstrap"]["code"] == "bootstrap-failed"
    assert "exit code 7" in session.reason.sentence
    assert (await codes(world, session))[-2:] == ["bootstrap-failed", "session-started"]


async def test_a_script_that_cannot_be_run_cancels_the_session_and_leaves_no_sandbox(world: World) -> None:
    world.agent.start_error = AgentError("the log cannot be written")

    session = await world.until_state(await world.create(bootstrap_script=SCRIPT), S.CANCELLED)

    assert session.reason is not None
    assert (session.reason.code, session.reason.sentence) == ("failed-to-start", "the log cannot be written")
    assert world.agent.running == {}


async def test_a_sandbox_that_dies_under_its_script_cancels_the_session(world: World) -> None:
    session = await world.create(bootstrap_script=SCRIPT)
    await world.agent.until_started(BOOTSTRAP)

    await world.agent.die(session.id, Reason(code="self-terminated", sentence="the first process ended"))

    cancelled = await world.until_state(session, S.CANCELLED)
    assert cancelled.reason is not None
    assert "bootstrap script" in cancelled.reason.sentence


async def test_a_session_can_be_ended_by_force_under_its_script(world: World) -> None:
    session = await world.create(bootstrap_script=SCRIPT)
    await world.agent.until_started(BOOTSTRAP)

    await world.lives.end(await world.ledger.get(session.id), ASKED, forced=True)

    assert (await world.ledger.get(session.id)).state is S.TERMINATED
    assert world.agent.running == {}


@pytest.mark.parametrize("is_alive", [True, False])
async def test_a_script_runs_once_in_each_sandbox_though_its_server_is_killed(tmp_path: Path, is_alive: bool) -> None:
    engine = FakeEngine()
    agent = engine.agents["fake"]
    async with a_world(tmp_path, engine) as first:
        await first.scheduler.open()
        session = await first.create(bootstrap_script=SCRIPT)
        await agent.until_started(BOOTSTRAP)
    agent.homes[session.id]["bootstrap.sh"] = b"# changed by itself"
    if not is_alive:
        await agent.die(session.id, Reason(code="node-lost", sentence="the machine was started anew"))
    ids = [BOOTSTRAP] if is_alive else [BOOTSTRAP, f"{BOOTSTRAP}-2"]

    async with a_world(tmp_path, engine) as second:
        await second.scheduler.open()
        await agent.until_started(ids[-1])
        await agent.finish(session.id, ids[-1], DONE)
        await second.until_state(session, S.RUNNING)

        assert [run.run_id for _, run in agent.started] == ids
        assert (agent.homes[session.id]["bootstrap.sh"] == SCRIPT.encode()) is not is_alive
