"""Batch sessions over a real store and scripted runs: their command runs once, whatever dies in between."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from roost.server.domain.sessions import JOB, Outcome
from roost.server.scheduler import loop
from roost.testing.engine import FakeEngine
from roost.wire.errors import AgentError, SessionNotRunning
from roost.wire.reasons import Reason
from roost.wire.runs import RunEnd, RunStatus
from roost.wire.sandboxes import SandboxEnded
from roost.wire.sessions import SessionResult, SessionType
from roost.wire.sessions import SessionState as S
from tests.worlds import ASKED, World, a_sandbox, a_world, codes

BATCH: dict[str, Any] = {"type": SessionType.BATCH, "startup_command": "make && ./a.out"}
DONE = RunEnd(status=RunStatus.OK, exit_code=0)
FAILED = RunEnd(status=RunStatus.ERROR, exit_code=3)
DIED = Reason(code="self-terminated", sentence="the first process ended")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        await world.scheduler.open()
        yield world


async def test_a_command_that_succeeds_ends_its_session_with_success(world: World) -> None:
    session = await world.create(**BATCH)
    run = await world.agent.until_started(JOB)
    running = await world.until_state(session, S.RUNNING)
    await world.agent.finish(session.id, JOB, DONE)
    ended = await world.until_state(session, S.TERMINATED)

    assert (run.mode, run.batch and run.batch.exec, run.code) == ("batch", "make && ./a.out", "")
    assert running.result is SessionResult.UNDEFINED
    assert (ended.result, ended.reason and ended.reason.code) == (SessionResult.SUCCESS, "task-finished")
    assert ended.status_data == {"kernel": {"exit_code": 0}, "session": {"status": "terminated"}}
    assert (await codes(world, session))[-4:] == [
        "session-started",
        "session-success",
        "session-terminating",
        "session-terminated",
    ]
    assert world.agent.running == {}
    assert list(await world.engine.reservations()) == []


async def test_a_command_that_fails_says_how(world: World) -> None:
    world.agent.script[JOB] = FAILED

    ended = await world.until_state(await world.create(**BATCH), S.TERMINATED)

    told = [one.sentence for one in await world.ledger.history(ended.id) if one.code == "session-failure"]
    assert (ended.result, ended.reason and ended.reason.code) == (SessionResult.FAILURE, "task-finished")
    assert ended.status_data["kernel"] == {"exit_code": 3}
    assert told == ["its command ended with exit code 3 (error)"]


async def test_a_command_that_cannot_be_started_is_a_failure_with_its_reason(world: World) -> None:
    world.agent.start_error = AgentError("the log cannot be written")

    ended = await world.until_state(await world.create(**BATCH), S.TERMINATED)

    assert ended.result is SessionResult.FAILURE
    assert any("cannot be written" in one.sentence for one in await world.ledger.history(ended.id))


@pytest.mark.parametrize("how", ["ended", "died"])
async def test_an_end_before_the_command_is_done_is_a_failure(world: World, how: str) -> None:
    session = await world.create(**BATCH)
    await world.agent.until_started(JOB)
    running = await world.until_state(session, S.RUNNING)

    if how == "ended":
        await world.lives.end(running, ASKED)
    else:
        await world.agent.die(session.id, DIED)
    ended = await world.until_state(session, S.TERMINATED)

    assert (ended.result, ended.reason) == (SessionResult.FAILURE, ASKED if how == "ended" else DIED)
    assert (await codes(world, session)).count("session-failure") == 1


async def test_a_restart_runs_the_command_again_under_another_id(world: World) -> None:
    session = await world.create(**BATCH)
    await world.agent.until_started(JOB)
    await world.lives.restart(await world.until_state(session, S.RUNNING))
    await world.agent.until_started(f"{JOB}-2")
    await world.agent.finish(session.id, f"{JOB}-2", DONE)

    ended = await world.until_state(session, S.TERMINATED)

    assert ended.result is SessionResult.SUCCESS
    assert [run.run_id for _, run in world.agent.started] == [JOB, f"{JOB}-2"]


async def test_a_session_that_has_run_its_command_is_not_restarted(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        session = await world.written("done", S.RUNNING, **BATCH)
        decided = await world.ledger.decide(session, Outcome(result=SessionResult.SUCCESS, sentence="done"))

        with pytest.raises(SessionNotRunning, match="has run its command"):
            await world.lives.restart(decided)


async def test_who_may_not_start_yet_says_until_when_and_lets_others_ahead(world: World) -> None:
    later = await world.create("later", starts_at=time.time() + 3600, **BATCH)
    told = await world.until(later, lambda now: now.reason is not None)
    other = await world.until_state(await world.create("other"), S.RUNNING)

    scheduler = told.status_data["scheduler"]
    assert other.state is S.RUNNING
    assert told.reason is not None
    assert told.reason.code == "predicate-checks-failed"
    assert [one["name"] for one in scheduler["failed_predicates"]] == ["reserved_time"]
    assert (await world.ledger.get(later.id)).version == told.version  # told once, not at each look


async def test_a_timer_starts_what_has_to_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LOOK_AGAIN_S", 3600.0)
    await world.until_state(await world.create("first"), S.RUNNING)  # the queue waits anew from here on

    session = await world.create("later", starts_at=time.time() + 0.2, **BATCH)
    running = await world.until_state(session, S.RUNNING)

    assert running.started_at is not None
    assert running.spec.starts_at is not None
    assert running.started_at >= running.spec.starts_at


# Servers that are killed


async def test_a_server_killed_before_it_started_the_command_is_followed_by_one_that_does(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        session = await world.written("main", S.RUNNING, **BATCH)
        world.agent.running[session.id] = a_sandbox(session.id)
        world.agent.script[JOB] = DONE

        await world.scheduler.open()
        ended = await world.until_state(session, S.TERMINATED)

        assert ended.result is SessionResult.SUCCESS
        assert [run.run_id for _, run in world.agent.started] == [JOB]


@pytest.mark.parametrize("killed", ["while it runs", "before it is written down", "before the end", "while it ends"])
async def test_a_command_runs_once_though_its_server_is_killed(tmp_path: Path, killed: str) -> None:
    engine = FakeEngine()
    agent = engine.agents["fake"]
    async with a_world(tmp_path, engine) as first:
        await first.scheduler.open()
        session = await first.create(**BATCH)
        await agent.until_started(JOB)
        await first.until_state(session, S.RUNNING)
    if killed != "while it runs":
        await agent.finish(session.id, JOB, DONE)
    if killed in ("before the end", "while it ends"):
        async with a_world(tmp_path, engine) as between:
            running = await between.ledger.get(session.id)
            success = Outcome(result=SessionResult.SUCCESS, sentence="done", exit_code=0)
            running = await between.ledger.decide(running, success)
            if killed == "while it ends":
                happening = ("session-terminating", "done")
                task_finished = Reason(code="task-finished", sentence="done")
                await between.ledger.move(running, S.TERMINATING, happening=happening, reason=task_finished)

    async with a_world(tmp_path, engine) as second:
        await second.scheduler.open()
        if killed == "while it runs":
            await agent.finish(session.id, JOB, DONE)
        ended = await second.until_state(session, S.TERMINATED)

        assert (ended.result, ended.reason and ended.reason.code) == (SessionResult.SUCCESS, "task-finished")
        assert [run.run_id for _, run in agent.started] == [JOB]
        assert (await codes(second, session)).count("session-success") == 1


@pytest.mark.parametrize(("end", "result"), [(DONE, SessionResult.SUCCESS), (None, SessionResult.FAILURE)])
async def test_what_a_lost_sandbox_had_done_is_read_from_its_log(
    tmp_path: Path, end: RunEnd | None, result: SessionResult
) -> None:
    engine = FakeEngine()
    agent = engine.agents["fake"]
    async with a_world(tmp_path, engine) as first:
        await first.scheduler.open()
        session = await first.create(**BATCH)
        await agent.until_started(JOB)
        await first.until_state(session, S.RUNNING)
    if end is not None:
        await agent.finish(session.id, JOB, end)
    rebooted = Reason(code="node-lost", sentence="the machine was started anew")
    await agent.die(session.id, rebooted)
    agent.found_lost = [SandboxEnded(session_id=session.id, reason=rebooted)]

    async with a_world(tmp_path, engine) as second:
        await second.scheduler.open()
        ended = await second.until_state(session, S.TERMINATED)

    assert (ended.result, ended.reason) == (result, rebooted)
    assert len(agent.started) == 1


async def test_a_restart_that_a_killed_server_left_runs_the_command_anew(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        session = await world.written("main", S.RUNNING, **BATCH)
        happening = ("session-restarting", "asked for")
        session = await world.ledger.move(session, S.RESTARTING, happening=happening, restarts=1)
        world.agent.running[session.id] = a_sandbox(session.id)

        await world.scheduler.open()
        run = await world.agent.until_started(f"{JOB}-2")

        assert run.run_id == f"{JOB}-2"
