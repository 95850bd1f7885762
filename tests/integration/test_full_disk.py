"""A node whose disk is full: runs wait for space, and nothing that was acknowledged is lost."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from roost.agent.log_writer import SHORT_BYTES
from roost.agent.supervisor import LocalAgent
from roost.runtimes.bubblewrap import BubblewrapRuntime
from roost.wire.errors import AgentError
from roost.wire.runs import EventKind, RunSpec, RunStatus
from tests.agents import end, end_of, events_of, output, run
from tests.integration.test_agent import a_spec
from tests.mounts import mount_tmpfs, unmount

pytestmark = pytest.mark.skipif(
    not BubblewrapRuntime().probe().available, reason="bubblewrap or user namespaces are missing"
)

LINES = 20_000
PRINTED = "".join(f"{i}\n" for i in range(LINES))
FILL = """
with open('full', 'wb', buffering=0) as file:
    try:
        while file.write(bytes(65536)): pass
    except OSError: pass
"""


@pytest.fixture
def small_disk(data_dir: Path) -> Iterator[Path]:
    """A data folder on a disk of 24 MiB."""
    try:
        mount_tmpfs(data_dir, "24m")
    except PermissionError:
        pytest.skip("only root may mount a small disk")
    yield data_dir
    unmount(data_dir)


@pytest.fixture
async def agent(small_disk: Path) -> AsyncIterator[LocalAgent]:
    agent = LocalAgent(small_disk)
    await agent.open()
    yield agent
    await end(agent)


async def logged(logs: list[MutableMapping[str, Any]], event: str) -> None:
    async with asyncio.timeout(30):
        while not [entry for entry in logs if entry["event"] == event]:
            await asyncio.sleep(0.01)


async def test_a_run_on_a_full_disk_goes_on_when_there_is_space(agent: LocalAgent, small_disk: Path) -> None:
    spec = a_spec()
    await agent.launch(spec)
    with capture_logs() as logs:
        await agent.start(spec.session_id, RunSpec(run_id="long", code=f"{FILL}for i in range({LINES}): print(i)"))
        await logged(logs, "log.stalled")

        with pytest.raises(AgentError, match="No space left") as refused:
            await agent.start(spec.session_id, RunSpec(run_id="refused", code="1" * 100_000))
        (small_disk / "sandboxes" / spec.session_id / "home" / "full").unlink()
        events = await events_of(agent, spec.session_id, "long")

    assert output(events) == PRINTED
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert refused.value.hint is not None
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["log.stalled"]
    assert [summary.run_id for summary in await agent.runs(spec.session_id)] == ["long"]
    assert output(await run(agent, spec.session_id, "print('after')", "refused")) == "after\n"


async def test_an_agent_that_comes_back_to_a_full_disk_loses_nothing(agent: LocalAgent, small_disk: Path) -> None:
    """1. a run stalls; 2. its agent goes and another comes; 3. that one stalls too; 4. there is space."""
    spec = a_spec()
    await agent.launch(spec)
    with capture_logs() as logs:
        await agent.start(spec.session_id, RunSpec(run_id="long", code=f"{FILL}for i in range({LINES}): print(i)"))
        await logged(logs, "log.stalled")
    await agent.aclose()

    second = LocalAgent(small_disk)
    with capture_logs() as logs:
        await second.open()
        await logged(logs, "log.stalled")
        (small_disk / "sandboxes" / spec.session_id / "home" / "full").unlink()
        events = await events_of(second, spec.session_id, "long")

    assert output(events) == PRINTED
    await end(second)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Says whether the disk of the run logs is full."""
    pwrite, is_full = os.pwrite, False

    def pwrite_if_space(descriptor: int, data: bytes, offset: int) -> int:
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, offset)

    def say(full: bool) -> None:
        nonlocal is_full
        is_full = full

    monkeypatch.setattr(os, "pwrite", pwrite_if_space)
    return say


@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_session_that_ends_on_a_full_disk_says_so_when_there_is_space(
    data_dir: Path, full: Callable[[bool], None], comes_back: bool
) -> None:
    agent = LocalAgent(data_dir)
    await agent.open()
    spec = a_spec()
    await agent.launch(spec)
    await agent.start(spec.session_id, RunSpec(run_id="long", code="import time; time.sleep(600)"))
    await agent.read(spec.session_id, "long", after=0, wait_s=10)

    full(True)
    with capture_logs() as logs:
        await agent.destroy(spec.session_id)
        await logged(logs, "log.stalled")
    if comes_back:
        await agent.aclose()
        agent = LocalAgent(data_dir)
        await agent.open()
    full(False)
    events = await events_of(agent, spec.session_id, "long")

    assert [event.kind for event in events] == [EventKind.STARTED, EventKind.END]
    assert (await end_of(agent, spec.session_id, "long")).status is RunStatus.SANDBOX_LOST
    await end(agent)


async def test_an_answer_that_could_not_be_logged_is_not_given(data_dir: Path, full: Callable[[bool], None]) -> None:
    agent = LocalAgent(data_dir)
    await agent.open()
    spec = a_spec()
    await agent.launch(spec)
    await agent.start(spec.session_id, RunSpec(run_id="ask", code="print(input())"))
    await agent.read(spec.session_id, "ask", after=1, wait_s=10)

    full(True)
    with pytest.raises(AgentError, match="No space left"):
        await agent.feed(spec.session_id, "ask", prompt=1, text="lost")
    full(False)
    await agent.feed(spec.session_id, "ask", prompt=1, text="kept")

    assert output(await events_of(agent, spec.session_id, "ask")) == "kept\n"
    await end(agent)


@pytest.mark.parametrize("padding", [0, SHORT_BYTES], ids=["short", "long"])
async def test_a_start_whose_caller_goes_away_is_accepted_once_and_runs(data_dir: Path, padding: int) -> None:
    agent = LocalAgent(data_dir)
    await agent.open()
    spec = a_spec()
    await agent.launch(spec)

    first = RunSpec(run_id="first", code="print(1)" + " " * padding)
    caller = asyncio.create_task(agent.start(spec.session_id, first))
    await asyncio.sleep(0)  # it has written, or queued its write
    caller.cancel()
    await asyncio.wait([caller])
    assert caller.cancelled() == bool(padding)
    second = await run(agent, spec.session_id, "print(2)", "second")

    assert output(await events_of(agent, spec.session_id, "first")) == "1\n"
    assert output(second) == "2\n"
    await end(agent)
