"""The end of what a session has written, read backwards: a log may be thousands of times as long."""

from collections import deque
from collections.abc import AsyncIterator

from roost.server.domain.console import gap_sentence
from roost.wire.agent import Agent
from roost.wire.runs import SESSION_RUN, EventKind

_FIRST_EVENTS, _MOST_EVENTS = 32, 4096
"""How many events are looked at in one step; more of them where they are short."""
_PAGE_BYTES = 1 << 18


async def end_of_log(agent: Agent, session_id: str, limit: int) -> str:
    """What a session's programs have written, run by run; the last `limit` characters of it."""
    newest_first = [run.run_id for run in await agent.runs(session_id)][::-1]
    parts: deque[str] = deque()
    size = 0
    for run_id in (*newest_first, SESSION_RUN):
        async for part in _backwards(agent, session_id, run_id, limit):
            parts.appendleft(part)
            size += len(part)
            if size >= limit:
                return "".join(parts)[-limit:]
    return "".join(parts)


async def _backwards(agent: Agent, session_id: str, run_id: str, limit: int) -> AsyncIterator[str]:
    """What a run has written, the last of it first, in pieces of at most about `limit` characters."""
    end = (await agent.read(session_id, run_id, after=0, max_bytes=0)).run.last_seq
    count = _FIRST_EVENTS
    while end > 0:
        start = max(0, end - count)
        text, gap = await _between(agent, session_id, run_id, start, end, limit)
        yield text
        if gap is not None:  # nothing that was written before it is left
            yield await _told(agent, session_id, run_id, gap)
            return
        end = start
        if len(text) < limit // 4:
            count = min(2 * count, _MOST_EVENTS)


async def _between(
    agent: Agent, session_id: str, run_id: str, start: int, end: int, limit: int
) -> tuple[str, int | None]:
    """The text of the events behind `start` and up to `end`, the last of it; and where the last gap among them ends."""
    texts: deque[str] = deque()
    size, gap, after = 0, None, start
    while after < end:
        page = await agent.read(session_id, run_id, after=after, max_bytes=_PAGE_BYTES)
        if not page.events:
            break
        for event in page.events:
            if event.kind is EventKind.GAP:
                gap = event.seq
                texts.clear()
                size = 0
            elif event.seq <= end and event.kind in (EventKind.STDOUT, EventKind.STDERR):
                texts.append(event.data)
                size += len(event.data)
                while size - len(texts[0]) >= limit:
                    size -= len(texts.popleft())
        after = page.events[-1].seq
    return "".join(texts), gap


async def _told(agent: Agent, session_id: str, run_id: str, last: int) -> str:
    """The sentences on the gaps up to this one; who reads from the middle of one is told only the rest of it."""
    told: list[str] = []
    after = 0
    while after < last and (page := (await agent.read(session_id, run_id, after=after, max_bytes=_PAGE_BYTES)).events):
        told += [gap_sentence(event.data) for event in page if event.kind is EventKind.GAP and event.seq <= last]
        after = page[-1].seq
    return "".join(told)
