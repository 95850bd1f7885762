"""The scheduler over a real store and a fake engine: what happens when nodes do not do as they are asked."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from roost.testing.engine import FakeAgent, FakeEngine
from roost.wire.errors import AgentError, CannotEnforce, Conflict, Forbidden, SessionNotRunning
from roost.wire.reasons import Reason
from roost.wire.sandboxes import SandboxEnded, SandboxState, SandboxStats
from roost.wire.sessions import SessionState as S
from tests.worlds import ASKED, World, a_sandbox, a_world, codes


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        await world.scheduler.open()
        yield world


async def test_a_session_goes_from_the_queue_to_its_node_and_back(world: World) -> None:
    session = await world.until_state(await world.create(), S.RUNNING)
    reserved = [one.key for one in await world.engine.reservations()]
    stats = await world.lives.end(session, ASKED)

    ended = await world.ledger.get(session.id)
    assert reserved == [session.id]
    assert (ended.state, ended.reason, stats.cpu_s) == (S.TERMINATED, ASKED, 0.5)
    assert ended.status_data["session"] == {"status": "terminated"}
    assert list(await world.engine.reservations()) == []
    assert world.agent.running == {}


async def test_the_oldest_comes_first_and_those_behind_wait_with_it(world: World) -> None:
    first = await world.until_state(await world.create("first", cpu=3), S.RUNNING)
    large = await world.until(await world.create("large", cpu=4), lambda now: now.reason is not None)
    small = await world.create("small", cpu=1)

    await world.lives.end(first, ASKED)
    await world.until_state(large, S.RUNNING)
    await world.lives.end(await world.ledger.get(large.id), ASKED)
    await world.until_state(small, S.RUNNING)

    assert [spec.session_id for spec in world.agent.launched] == [first.id, large.id, small.id]


async def test_a_reason_is_written_once_however_often_it_is_found(world: World) -> None:
    await world.until_state(await world.create("first", cpu=1), S.RUNNING)
    session = await world.until(await world.create("large", cpu=4), lambda now: now.reason is not None)
    for number in range(3):
        await world.create(f"other-{number}", cpu=4)

    await world.until(session, lambda now: now.status_data["scheduler"]["retries"] >= 3)

    assert await codes(world, session) == ["session-enqueued", "no-available-instances"]


async def test_those_behind_are_told_that_they_wait(world: World) -> None:
    await world.until_state(await world.create("first", cpu=1), S.RUNNING)
    await world.until(await world.create("large", cpu=4), lambda now: now.reason is not None)
    small = await world.until(await world.create("small", cpu=1), lambda now: now.reason is not None)

    assert small.reason is not None
    assert (small.state, small.reason.code) == (S.PENDING, "no-available-instances")


async def test_who_can_never_start_holds_nobody_up(world: World) -> None:
    huge = await world.until(await world.create("huge", cpu=99), lambda now: now.reason is not None)

    small = await world.until_state(await world.create("small", cpu=1), S.RUNNING)

    assert small.reason is None
    assert (await world.ledger.get(huge.id)).state is S.PENDING


@pytest.mark.parametrize("error", [AgentError("no bwrap here"), CannotEnforce("no cgroup here")])
async def test_a_launch_that_fails_is_cancelled_with_its_reason(world: World, error: AgentError) -> None:
    world.agent.launch_error = error

    session = await world.until_state(await world.create(), S.CANCELLED)

    assert session.reason is not None
    assert (session.reason.code, session.reason.sentence) == ("failed-to-start", error.message)
    assert session.status_data["error"]["src"] == "agent"
    assert list(await world.engine.reservations()) == []


async def test_a_destroy_that_fails_leaves_an_error_that_force_ends(world: World) -> None:
    session = await world.until_state(await world.create(), S.RUNNING)
    world.agent.destroy_error = AgentError("a process does not die")

    with pytest.raises(AgentError, match="does not die"):
        await world.lives.end(session, ASKED)
    broken = await world.ledger.get(session.id)
    with pytest.raises(Forbidden):
        await world.lives.end(broken, ASKED)
    world.agent.destroy_error = None
    await world.lives.end(broken, ASKED, forced=True)

    assert (broken.state, broken.reason and broken.reason.code) == (S.ERROR, "agent-error")
    assert (await world.ledger.get(session.id)).state is S.TERMINATED
    assert list(await world.engine.reservations()) == []


async def test_who_ends_a_session_twice_at_once_ends_it_once(world: World) -> None:
    session = await world.until_state(await world.create(), S.RUNNING)

    await asyncio.gather(world.lives.end(session, ASKED), world.lives.end(session, ASKED))

    assert (await codes(world, session))[-2:] == ["session-terminating", "session-terminated"]


async def test_an_end_by_force_while_it_is_launched_leaves_no_sandbox(world: World) -> None:
    world.agent.may_launch.clear()
    session = await world.until_state(await world.create(), S.PREPARING)

    with pytest.raises(Forbidden, match="PREPARING"):
        await world.lives.end(session, ASKED)
    await world.lives.end(session, ASKED, forced=True)
    world.agent.may_launch.set()
    after = await world.until_state(await world.create("after"), S.RUNNING)

    assert (await world.ledger.get(session.id)).state is S.TERMINATED
    assert list(world.agent.running) == [after.id]


async def test_a_sandbox_that_goes_by_itself_ends_its_session_with_the_nodes_reason(world: World) -> None:
    session = await world.until_state(await world.create(), S.RUNNING)
    reason = Reason(code="self-terminated", sentence="the first process ended")

    await world.agent.die(session.id, reason)

    ended = await world.until_state(session, S.TERMINATED)
    assert (ended.reason, ended.status_data["kernel"]) == (reason, {"exit_code": 1})
    assert (await world.until_state(await world.create(), S.RUNNING)).name == session.name


async def test_a_stale_change_is_refused(world: World) -> None:
    session = await world.until_state(await world.create(), S.RUNNING)

    stale = msgspec.structs.replace(session, version=1)
    with pytest.raises(Conflict):
        await world.ledger.move(stale, S.TERMINATING, happening=("session-terminating", "late"))


async def test_a_restarted_server_finds_each_session_where_it_was(tmp_path: Path) -> None:
    engine = FakeEngine()
    agent = engine.agents["fake"]
    async with a_world(tmp_path, engine) as world:
        alive = await world.written("alive", S.RUNNING)
        gone = await world.written("gone", S.RUNNING)
        told = await world.written("told", S.RUNNING)
        half = await world.written("half", S.PREPARING)
        ready = await world.written("ready", S.PREPARING)
        ending = await world.written("ending", S.TERMINATING)
        waiting = await world.create("waiting")
        for session in (alive, ready, ending):
            agent.running[session.id] = a_sandbox(session.id)
        agent.running["stranger"] = a_sandbox("stranger")
        rebooted = Reason(code="node-lost", sentence="the machine was started anew")
        agent.found_lost = [SandboxEnded(session_id=told.id, reason=rebooted)]

        await world.scheduler.open()
        for session in (alive, half, ready, waiting):
            await world.until_state(session, S.RUNNING)
        states = [(await world.until_state(one, S.TERMINATED)).reason for one in (gone, told, ending)]

        assert [reason.code for reason in states if reason] == ["self-terminated", "node-lost", "user-requested"]
        assert set(agent.running) == {alive.id, half.id, ready.id, waiting.id}
        assert {one.key for one in await engine.reservations()} == set(agent.running)
        assert "session-requeued" in await codes(world, half)


async def test_who_asks_for_an_end_that_a_restarted_server_completes_waits_for_it(tmp_path: Path) -> None:
    """1. a server dies while it ends a session; 2. the next one goes on with it; 3. the client asks again."""
    engine = FakeEngine()
    engine.agents["fake"] = agent = SlowToEnd()
    async with a_world(tmp_path, engine) as world:
        session = await world.written("ending", S.TERMINATING)
        await world.scheduler.open()

        asking = asyncio.create_task(world.lives.end(session, ASKED))
        async with asyncio.timeout(10):
            await agent.asked.wait()
            agent.may_end.set()
            stats = await asking

        assert stats.cpu_s == 0.5
        assert agent.ends == 1
        assert (await codes(world, session))[-1:] == ["session-terminated"]


class SlowToEnd(FakeAgent):
    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may_end, self.ends = asyncio.Event(), asyncio.Event(), 0

    async def destroy(self, session_id: str) -> SandboxStats:
        self.asked.set()
        self.ends += 1
        await self.may_end.wait()
        return await super().destroy(session_id)


async def test_a_restart_gives_a_running_session_a_new_sandbox(world: World) -> None:
    session = await world.until_state(await world.create(), S.RUNNING)

    await asyncio.gather(world.lives.restart(session), world.lives.restart(session))

    after = await world.ledger.get(session.id)
    assert (after.state, world.agent.restarted) == (S.RUNNING, [session.id])
    assert (await codes(world, session))[-2:] == ["session-restarting", "session-restarted"]
    assert [one.key for one in await world.engine.reservations()] == [session.id]


async def test_a_restart_that_fails_leaves_an_error_that_force_ends(world: World) -> None:
    session = await world.until_state(await world.create(), S.RUNNING)
    world.agent.launch_error = AgentError("no bwrap here")

    with pytest.raises(AgentError, match="no bwrap"):
        await world.lives.restart(session)
    broken = await world.ledger.get(session.id)
    with pytest.raises(SessionNotRunning, match="ERROR"):
        await world.lives.restart(broken)
    with pytest.raises(Forbidden):
        await world.lives.end(broken, ASKED)
    await world.lives.end(broken, ASKED, forced=True)

    assert (broken.state, broken.reason and broken.reason.code) == (S.ERROR, "agent-error")
    assert (await world.ledger.get(session.id)).state is S.TERMINATED
    assert world.agent.running == {}


@pytest.mark.parametrize("forced", [False, True])
async def test_an_end_while_it_is_restarted_leaves_no_sandbox(world: World, forced: bool) -> None:
    session = await world.until_state(await world.create(), S.RUNNING)
    world.agent.may_launch.clear()
    restarting = asyncio.create_task(world.lives.restart(session))
    now = await world.until_state(session, S.RESTARTING)

    await world.lives.end(now, ASKED, forced=forced)
    world.agent.may_launch.set()
    with capture_logs() as logs, pytest.raises(Conflict):
        await restarting

    assert not [entry for entry in logs if entry["log_level"] == "error"]
    assert (await world.ledger.get(session.id)).state is S.TERMINATED
    assert world.agent.running == {}
    assert list(await world.engine.reservations()) == []


async def test_an_end_that_read_the_session_before_its_restart_ends_it_all_the_same(world: World) -> None:
    before = await world.until_state(await world.create(), S.RUNNING)
    await world.lives.restart(before)

    await world.lives.end(before, ASKED)

    assert (await world.ledger.get(before.id)).state is S.TERMINATED


async def test_a_new_sandbox_that_dies_before_it_is_written_down_ends_its_session(world: World) -> None:
    session = await world.until_state(await world.create(), S.RUNNING)
    world.agent.may_launch.clear()
    restarting = asyncio.create_task(world.lives.restart(session))
    await world.until_state(session, S.RESTARTING)
    reason = Reason(code="self-terminated", sentence="the first process ended")

    await world.lives.on_ended(SandboxEnded(session_id=session.id, reason=reason, exit_code=1))
    world.agent.may_launch.set()
    await restarting

    assert (await world.until_state(session, S.TERMINATED)).reason == reason


async def test_a_sandbox_that_is_gone_cannot_be_restarted(world: World) -> None:
    session = await world.until_state(await world.create(), S.RUNNING)
    del world.agent.running[session.id]

    with pytest.raises(SessionNotRunning, match="gone"):
        await world.lives.restart(session)

    assert (await world.ledger.get(session.id)).state is S.TERMINATED
    assert list(await world.engine.reservations()) == []


async def test_a_restart_that_a_killed_server_left_is_completed(tmp_path: Path) -> None:
    engine = FakeEngine()
    agent = engine.agents["fake"]
    async with a_world(tmp_path, engine) as world:
        alive = await world.written("alive", S.RESTARTING)
        half = await world.written("half", S.RESTARTING)
        gone = await world.written("gone", S.RESTARTING)
        older = await world.written("older", S.RUNNING)
        agent.running[alive.id] = a_sandbox(alive.id)
        for session_id in (half.id, older.id, "stranger"):
            agent.running[session_id] = a_sandbox(session_id, SandboxState.RESTARTING)

        await world.scheduler.open()
        await world.until_state(alive, S.RUNNING)
        for session in (half, older):
            await world.until(session, lambda now: now.state is S.RUNNING and now.version > 1)
        await world.until_state(gone, S.TERMINATED)

        assert sorted(agent.restarted) == sorted([half.id, older.id])
        assert {one: info.state for one, info in agent.running.items()} == dict.fromkeys(
            (alive.id, half.id, older.id), SandboxState.RUNNING
        )
        assert {one.key for one in await engine.reservations()} == {alive.id, half.id, older.id}
        for session in (alive, half, older):
            assert (await codes(world, session))[-1] == "session-restarted"


async def test_who_asks_again_for_a_restart_that_a_killed_server_left_waits_for_it(tmp_path: Path) -> None:
    engine = FakeEngine()
    agent = engine.agents["fake"]
    agent.may_launch.clear()
    async with a_world(tmp_path, engine) as world:
        session = await world.written("half", S.RESTARTING)
        agent.running[session.id] = a_sandbox(session.id, SandboxState.RESTARTING)
        await world.scheduler.open()

        asking = asyncio.create_task(world.lives.restart(session))
        agent.may_launch.set()
        await asking

        assert agent.restarted == [session.id]
        assert (await world.ledger.get(session.id)).state is S.RUNNING


async def test_force_frees_the_name_at_once_even_where_the_node_fails(world: World) -> None:
    session = await world.until_state(await world.create(), S.RUNNING)
    world.agent.destroy_error = AgentError("a process does not die")
    with pytest.raises(AgentError):
        await world.lives.end(session, ASKED)

    with pytest.raises(AgentError, match="does not die"):
        await world.lives.end(await world.ledger.get(session.id), ASKED, forced=True)

    assert (await world.ledger.get(session.id)).state is S.TERMINATED
    assert [one.key for one in await world.engine.reservations()] == [session.id]  # its node still has it
