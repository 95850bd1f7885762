"""The keeper is killed beside an agent that lives: sandboxes go on, their ends are seen, launches work again."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from roost.agent.interpreters import find_interpreters
from roost.agent.supervisor import LocalAgent
from roost.runtimes.base import Place, SandboxHandle
from roost.runtimes.bubblewrap import BubblewrapRuntime
from roost.runtimes.keeper import KeeperClient
from roost.wire.errors import KeeperGone
from roost.wire.ids import new_session_id
from roost.wire.sandboxes import SandboxEnded, SandboxSpec
from tests.agents import end, output, run
from tests.e2e.server_process import keeper_pid, kill_keeper, state_of

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)


def a_spec() -> SandboxSpec:
    return SandboxSpec(session_id=new_session_id(), interpreter=find_interpreters()[0])


async def next_end(agent: LocalAgent) -> SandboxEnded:
    async with asyncio.timeout(10):
        return await anext(agent.ended())


async def kill_before_it_answers(agent: LocalAgent, data_dir: Path) -> None:
    """1. the keeper stops; 2. a spawn request waits in its socket; 3. it is killed, which resets the connection."""
    keeper = keeper_pid(data_dir)
    assert keeper is not None
    os.kill(keeper, signal.SIGSTOP)
    await state_of(keeper, "T")
    assert agent._sandboxes.keeper is not None
    async with asyncio.timeout(10):
        while not agent._sandboxes.keeper._waiting:  # a request that is not sent yet would go to the next keeper
            await asyncio.sleep(0.005)
    os.kill(keeper, signal.SIGKILL)


async def test_a_launch_whose_keeper_is_killed_is_done_again(agent: LocalAgent, data_dir: Path) -> None:
    spec = a_spec()
    launching = asyncio.create_task(agent.launch(spec))

    await kill_before_it_answers(agent, data_dir)

    async with asyncio.timeout(10):
        await launching
    assert output(await run(agent, spec.session_id, "print('alive')")) == "alive\n"


async def test_a_restart_whose_keeper_is_killed_is_done_again(agent: LocalAgent, data_dir: Path) -> None:
    spec = a_spec()
    await agent.launch(spec)
    await run(agent, spec.session_id, "open('kept', 'w').write('yes')")
    restarting = asyncio.create_task(agent.restart(spec.session_id))

    await kill_before_it_answers(agent, data_dir)

    async with asyncio.timeout(10):
        await restarting
    assert output(await run(agent, spec.session_id, "print(open('kept').read())")) == "yes\n"


class KeeperlessRuntime(BubblewrapRuntime):
    """Whoever is asked to launch dies of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def launch(self, spec: SandboxSpec, place: Place, keeper: KeeperClient) -> SandboxHandle:
        self.asked += 1
        raise KeeperGone("the keeper is gone")


async def test_a_launch_that_kills_its_keepers_fails_and_leaves_nothing(data_dir: Path) -> None:
    runtime = KeeperlessRuntime()
    agent = LocalAgent(data_dir, {runtime.name: runtime})
    await agent.open()
    try:
        with pytest.raises(KeeperGone):
            await agent.launch(a_spec())

        assert runtime.asked == 2
        assert list(agent._sandboxes.folder.iterdir()) == []
    finally:
        await end(agent)


async def test_launches_at_the_same_moment_share_the_new_keeper(agent: LocalAgent, data_dir: Path) -> None:
    kill_keeper(data_dir)

    launched = await asyncio.gather(*(agent.launch(a_spec()) for _ in range(3)))

    assert len({info.session_id for info in launched}) == 3


async def test_the_end_of_a_sandbox_is_seen_though_its_keeper_was_replaced(agent: LocalAgent, data_dir: Path) -> None:
    spec = a_spec()
    await agent.launch(spec)
    kill_keeper(data_dir)
    await agent.launch(a_spec())  # starts another keeper, which does not know the first sandbox

    os.kill(agent._sandboxes.load(spec.session_id).init_pid, signal.SIGKILL)

    ended = await next_end(agent)
    assert (ended.session_id, ended.reason.code, ended.signal) == (spec.session_id, "self-terminated", None)
    assert "unknown" in ended.reason.sentence


async def test_the_end_of_a_sandbox_is_seen_after_agent_and_keeper_were_replaced(data_dir: Path) -> None:
    first, spec = LocalAgent(data_dir), a_spec()
    await first.open()
    await first.launch(spec)
    kill_keeper(data_dir)
    await first.aclose()
    second = LocalAgent(data_dir)
    await second.open()

    os.kill(second._sandboxes.load(spec.session_id).init_pid, signal.SIGKILL)

    assert (await next_end(second)).session_id == spec.session_id
    await end(second)


async def test_a_keeper_that_lives_tells_how_a_sandbox_ended(agent: LocalAgent) -> None:
    spec = a_spec()
    await agent.launch(spec)

    os.kill(agent._sandboxes.load(spec.session_id).init_pid, signal.SIGKILL)

    ended = await next_end(agent)
    assert ended.session_id == spec.session_id
    assert "unknown" not in ended.reason.sentence
