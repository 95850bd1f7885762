"""Agent and keeper are killed while a run produces output and asks for input; no line is lost, none comes twice."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from roost.agent.supervisor import LocalAgent
from roost.runtimes.bubblewrap import BubblewrapRuntime
from roost.wire.ids import new_session_id
from tests.agents import end, output, run
from tests.e2e import agent_process

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)


class Reader:
    """A reader that continues after the last event it saw, and the agents that it outlives."""

    def __init__(self, data_dir: Path, session_id: str, limit: int) -> None:
        self._arguments = [str(data_dir), session_id]
        self._limit = limit
        self.seen: list[tuple[int, str, str | None]] = []
        self.ended = False

    def follow(self, events: int, victims: str) -> None:
        """Read about this many events from a new agent, then kill agent, keeper or both."""
        after = self.seen[-1][0] if self.seen else 0
        command = [sys.executable, agent_process.__file__, *self._arguments, str(after), str(self._limit)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            [_, keeper] = json.loads(process.stdout.readline())
            for line in process.stdout:
                # The last line of a killed process may be torn.
                if not line.endswith("\n"):
                    break
                seq, kind, text = json.loads(line)
                self.seen.append((seq, kind, text))
                self.ended = kind == "end"
                events -= 1
                if events <= 0 and not self.ended and victims:
                    break
            if not self.ended:
                if "keeper" in victims:
                    os.kill(keeper, signal.SIGKILL)
                if "agent" in victims:
                    process.kill()


async def kill_many_times(data_dir: Path, kills: int, limit: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    session_id = new_session_id()
    reader = Reader(data_dir, session_id, limit)

    for number in range(kills):
        # Every second kill takes the keeper along: its sandboxes must go on without it.
        reader.follow(chance.randrange(1, 2 * limit // kills // 3 + 2), "agent" if number % 2 else "agent keeper")
        assert not reader.ended, "the run was too short for so many kills"
    reader.follow(0, "")

    agent = LocalAgent(data_dir)
    await agent.open()
    own = (data_dir / "sandboxes" / session_id / "home" / "own.txt").read_text()
    state = output(await run(agent, session_id, "print(total)"))
    await end(agent)
    printed = "".join(text or "" for _, kind, text in reader.seen if kind == "stdout")
    assert [seq for seq, _, _ in reader.seen] == list(range(1, len(reader.seen) + 1))
    assert printed == own == "".join(f"{number}\n" for number in range(1, limit + 1))
    assert state == f"{limit}\n"


async def test_twenty_kills_lose_nothing(data_dir: Path) -> None:
    await kill_many_times(data_dir, kills=20, limit=6_000)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.skipif("ROOST_SOAK" not in os.environ, reason="a long run: `make soak` does it")
async def test_a_hundred_kills_lose_nothing(data_dir: Path) -> None:
    await kill_many_times(data_dir, kills=100, limit=40_000)
