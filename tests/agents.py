"""Driving an agent in tests."""

import asyncio
import os

from roost.agent.supervisor import LocalAgent
from roost.wire.runs import Event, EventKind, RunEnd, RunSpec


async def end(agent: LocalAgent) -> None:
    """Destroy what the test left; the keeper ends when it has nothing to keep."""
    for sandbox in await agent.sandboxes():
        await agent.destroy(sandbox.session_id)
    await agent.aclose()


async def events_of(agent: LocalAgent, session_id: str, run_id: str) -> list[Event]:
    """Every event of a run up to its end."""
    events: list[Event] = []
    async with asyncio.timeout(60):
        while True:
            page = await agent.read(session_id, run_id, after=len(events), wait_s=5)
            events += page.events
            if events and events[-1].kind is EventKind.END:
                return events


async def end_of(agent: LocalAgent, session_id: str, run_id: str) -> RunEnd:
    [summary] = [summary for summary in await agent.runs(session_id) if summary.run_id == run_id]
    assert summary.end is not None
    return summary.end


async def run(agent: LocalAgent, session_id: str, code: str, run_id: str = "") -> list[Event]:
    run_id = run_id or os.urandom(4).hex()
    await agent.start(session_id, RunSpec(run_id=run_id, code=code))
    return await events_of(agent, session_id, run_id)


def output(events: list[Event]) -> str:
    return "".join(event.data for event in events if event.kind is EventKind.STDOUT)
