"""An agent with the logs of many sessions."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.agent.journal import SEGMENT_BYTES
from roost.agent.log_format import encode_json
from roost.agent.log_writer import LogWriter
from roost.agent.run_logs import IDLE_LOGS
from roost.agent.runs import Kind
from roost.agent.session_runs import SessionRuns
from roost.agent.supervisor import LocalAgent
from roost.wire.runs import RunEnd, RunSpec, RunState, RunStatus
from tests.agents import end, output

COUNT = IDLE_LOGS + 20
NAMES = [f"session-{number}" for number in range(COUNT)]


@pytest.fixture
async def agent(data_dir: Path) -> AsyncIterator[LocalAgent]:
    """One that finds the logs of sessions that have ended; each had one run, which printed the session's name."""
    writer = LogWriter()
    for name in NAMES:
        await make_log(data_dir, name, writer)
    writer.close()
    agent = LocalAgent(data_dir)
    await agent.open()
    yield agent
    await end(agent)


async def make_log(data_dir: Path, name: str, writer: LogWriter, *, ended: bool = True, padding: int = 0) -> None:
    runs = SessionRuns(data_dir / "logs" / name, writer)
    run, _ = await runs.accept(RunSpec(run_id="run", code=f"print({name!r})" + " " * padding))
    await runs.append(run, Kind.STARTED, None, b'{"state_lost":false}')
    await runs.append(run, Kind.STDOUT, None, name.encode())
    if ended:
        last = RunEnd(status=RunStatus.OK, exit_code=0)
        await runs.append(run, Kind.END, last, encode_json(last))
    runs.close()


async def said(agent: LocalAgent, name: str) -> str:
    return output((await agent.read(name, "run", after=0)).events)


async def test_only_so_many_logs_stay_open_and_all_can_be_read(agent: LocalAgent, data_dir: Path) -> None:
    for _ in range(2):
        assert [await said(agent, name) for name in NAMES] == NAMES
    assert await asyncio.gather(*(said(agent, name) for name in NAMES * 2)) == NAMES * 2

    held = [path for path in Path("/proc/self/fd").iterdir() if str(data_dir / "logs") in os.path.realpath(path)]
    assert len(agent._logs.open_names) == len(held) == IDLE_LOGS


async def test_the_log_asked_for_last_stays_open(agent: LocalAgent) -> None:
    for name in NAMES:
        await said(agent, NAMES[0])
        await said(agent, name)

    assert agent._logs.open_names[-2:] == [NAMES[0], NAMES[-1]]


async def test_cursors_that_move_in_logs_that_come_and_go_are_kept(agent: LocalAgent, data_dir: Path) -> None:
    await asyncio.gather(*(agent.move_cursor(name, "run", seq) for seq in (1, 2, 3) for name in NAMES))

    assert {await agent.cursor(name, "run") for name in NAMES} == {3}
    assert [await said(agent, name) for name in NAMES] == NAMES


async def test_a_log_is_read_in_a_thread(agent: LocalAgent, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter()
    await make_log(data_dir, "long", writer, padding=SEGMENT_BYTES)
    writer.close()
    pread = os.pread
    readers: list[threading.Thread] = []
    reads: list[tuple[int, int, int]] = []

    def pread_noted(descriptor: int, count: int, offset: int) -> bytes:
        readers.append(threading.current_thread())
        reads.append((descriptor, count, offset))
        return pread(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", pread_noted)
    summaries = await asyncio.gather(agent.runs("long"), agent.runs("long"))

    assert [len(runs) for runs in summaries] == [1, 1]
    assert len(reads) == len(set(reads)) > 0  # once, for both
    assert threading.main_thread() not in readers


async def test_a_run_whose_end_was_never_logged_is_lost(agent: LocalAgent, data_dir: Path) -> None:
    writer = LogWriter()
    await make_log(data_dir, "open", writer, ended=False)
    writer.close()

    page = await agent.read("open", "run", after=0, wait_s=10)

    assert page.run.state is RunState.ENDED
    assert page.run.end is not None
    assert page.run.end.status is RunStatus.SANDBOX_LOST
