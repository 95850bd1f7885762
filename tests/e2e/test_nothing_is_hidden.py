"""Whatever a run does to its own interpreter, it ends with a reason, and nobody else notices."""

import asyncio
from dataclasses import dataclass

import pytest

from roost.agent.interpreters import find_interpreters
from roost.agent.supervisor import LocalAgent
from roost.runtimes.bubblewrap import BubblewrapRuntime
from roost.wire.ids import new_session_id
from roost.wire.runs import Event, EventKind, RunEnd, RunStatus
from roost.wire.sandboxes import Limits, SandboxSpec
from tests.agents import output, run

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)

LIMIT = 128 << 20
PATIENCE_S = 2.0


EXITED, SIGNALLED, CLOSED = "kernel-exited", "kernel-signalled", "channel-closed"


@dataclass(frozen=True)
class Death:
    code: str
    ends: dict[int, str]
    """The exit codes that it may have, each with its reason."""


# The runner kills an interpreter that it hears no more, unless that one has ended by itself before.
DEATHS = {
    "exits with 137": Death("import os; os._exit(137)", {137: EXITED}),
    "kills itself": Death("import os; os.kill(os.getpid(), 9)", {137: SIGNALLED}),
    "kills its group": Death("import os; os.kill(0, 9)", {137: SIGNALLED}),
    "segfaults": Death("import ctypes; ctypes.string_at(0)", {139: SIGNALLED}),
    "becomes another program": Death("import os; os.execv('/bin/true', ['true'])", {0: EXITED, 137: CLOSED}),
    "closes every descriptor": Death("import os; os.closerange(0, 65536)", {1: EXITED, 137: CLOSED}),
    "closes every descriptor and goes on": Death("import os; os.closerange(0, 65536)\nwhile True: pass", {137: CLOSED}),
    "closes every descriptor for good": Death(
        "import os, signal\nos.closerange(0, 65536)\n"
        "for n in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\n"
        "while True: pass",
        {137: CLOSED},
    ),
}
EXHAUST = "x = bytearray(512 << 20)"
KILL_PARENT = """
import os
for number in range(1, 65):
    os.kill(os.getppid(), number)
try:
    os.kill(-1, 9)
except ProcessLookupError:
    pass
print('alive')
"""


async def a_session(agent: LocalAgent) -> str:
    spec = SandboxSpec(session_id=new_session_id(), interpreter=find_interpreters()[0], limits=Limits(mem_bytes=LIMIT))
    await agent.launch(spec)
    return spec.session_id


async def run_beside_another(agent: LocalAgent, session_id: str, code: str) -> list[Event]:
    """Run it while another session is asked for 1+1 again and again, and once more when it has ended."""
    other = await a_session(agent)
    before = await processes(agent)
    hostile = asyncio.create_task(run(agent, session_id, code, "hostile"))
    ended = False
    while not ended:
        ended = hostile.done()
        async with asyncio.timeout(PATIENCE_S):
            answered = await run(agent, other, "1+1")
        assert [event.data["text"] for event in answered if event.kind is EventKind.RESULT] == ["2"]
    assert await processes(agent) == before
    return await hostile


async def processes(agent: LocalAgent) -> tuple[object, ...]:
    """The keeper, its children, and the runner of each session."""
    assert agent._sandboxes.keeper is not None
    keeper = await agent._sandboxes.keeper.hello()
    runners = {info.session_id: agent._sandboxes.load(info.session_id).init_pid for info in await agent.sandboxes()}
    return keeper["pid"], keeper["children"], runners


async def end_of(agent: LocalAgent, session_id: str) -> RunEnd:
    [end] = [summary.end for summary in await agent.runs(session_id) if summary.run_id == "hostile"]
    assert end is not None
    return end


@pytest.mark.parametrize("death", DEATHS.values(), ids=[name.replace(" ", "-") for name in DEATHS])
async def test_an_interpreter_that_ends_itself_harms_nobody_else_and_is_replaced(
    agent: LocalAgent, death: Death
) -> None:
    session_id = await a_session(agent)
    await run(agent, session_id, "x = 1")

    await run_beside_another(agent, session_id, death.code)

    end = await end_of(agent, session_id)
    assert end.status is RunStatus.KERNEL_DIED
    assert end.reason is not None
    assert (end.exit_code, end.reason.code) in death.ends.items()
    after = await run(agent, session_id, "print('x' in globals())")
    assert after[0].data == {"state_lost": True}
    assert output(after) == "False\n"


async def test_an_interpreter_that_kills_its_parent_finds_it_unharmed(agent: LocalAgent) -> None:
    session_id = await a_session(agent)
    await run(agent, session_id, "x = 1")

    events = await run_beside_another(agent, session_id, KILL_PARENT)

    assert output(events) == "alive\n"
    assert (await end_of(agent, session_id)).status is RunStatus.OK
    after = await run(agent, session_id, "print(x)")
    assert after[0].data == {"state_lost": False}
    assert output(after) == "1\n"


async def test_an_interpreter_that_exhausts_its_memory_harms_nobody_else_and_is_told_limit_and_peak(
    agent: LocalAgent,
) -> None:
    session_id = await a_session(agent)
    skip_without_memory_limit(agent, session_id)

    await run_beside_another(agent, session_id, EXHAUST)

    end = await end_of(agent, session_id)
    assert (end.status, end.exit_code) == (RunStatus.KERNEL_DIED, 137)
    assert end.reason is not None
    assert (end.reason.code, end.reason.limit) == ("memory-limit", LIMIT)
    assert end.reason.peak is not None
    assert LIMIT * 3 // 4 < end.reason.peak <= LIMIT
    assert str(LIMIT) in end.reason.sentence
    after = await run(agent, session_id, "print('alive')")
    assert after[0].data == {"state_lost": True}
    assert output(after) == "alive\n"


async def test_an_exit_is_no_memory_limit_even_if_a_child_reached_it(agent: LocalAgent) -> None:
    """1. a child is killed for its memory; 2. the interpreter sees that, and exits as if it had been killed."""
    session_id = await a_session(agent)
    skip_without_memory_limit(agent, session_id)
    code = f"import os\nif os.fork() == 0:\n    {EXHAUST}\nprint(os.wait()[1], flush=True)\nos._exit(137)"

    events = await run_beside_another(agent, session_id, code)

    assert output(events) == "9\n"
    end = await end_of(agent, session_id)
    assert end.reason is not None
    assert (end.exit_code, end.reason.code) == (137, EXITED)


def skip_without_memory_limit(agent: LocalAgent, session_id: str) -> None:
    if "mem" in agent._sandboxes.load(session_id).isolation.not_enforced:
        pytest.skip("no writable memory cgroup here")
