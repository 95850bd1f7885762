"""The end of a log, read backwards."""

import asyncio
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.server.domain.console import gap_sentence
from roost.server.services.log_ends import end_of_log
from roost.wire.agent import Agent
from roost.wire.runs import Event, EventKind, Page, RunState, RunSummary


@dataclass
class Logs:
    """The logs of a session's runs, as an agent gives them out."""

    events: dict[str, list[Event]]
    """By run, oldest first; their seqs rise, and a gap has that of its last event."""
    given: int = field(default=0, init=False)
    """Characters that were read."""

    async def runs(self, session_id: str) -> list[RunSummary]:
        return [self._summary(run_id) for run_id in self.events if run_id]

    async def read(self, session_id: str, run_id: str, *, after: int, max_bytes: int) -> Page:
        found: list[Event] = []
        size = 0
        for event in self.events.get(run_id, []):
            if event.seq <= after:
                continue
            if event.kind is EventKind.GAP:
                event = Event(event.seq, event.kind, event.data | {"first": max(event.data["first"], after + 1)})
            size += len(event.data)
            if found and size > max_bytes:
                break
            found.append(event)
        self.given += size
        return Page(events=found if max_bytes else [], run=self._summary(run_id))

    def _summary(self, run_id: str) -> RunSummary:
        events = self.events.get(run_id, [])
        last = events[-1].seq if events else 0
        return RunSummary(run_id=run_id, state=RunState.RUNNING, last_seq=last, accepted_at=0.0)

    def text(self, limit: int) -> str:
        """What was written, read from its beginning."""
        parts: list[str] = []
        for events in self.events.values():
            for event in events:
                if event.kind is EventKind.GAP:
                    parts.append(gap_sentence(event.data))
                elif event.kind is EventKind.STDOUT:
                    parts.append(event.data)
        return "".join(parts)[-limit:]


def a_log(texts: list[str | None], gone: int = 0) -> list[Event]:
    """Events of these texts, None for one of another kind; so many at the beginning are gone."""
    events = [
        Event(seq, EventKind.STDOUT, text) if text is not None else Event(seq, EventKind.DISPLAY, {"mime": {}})
        for seq, text in enumerate(texts, 1)
    ]
    if not gone:
        return events
    gap = Event(gone, EventKind.GAP, {"first": 1, "last": gone, "bytes": gone})
    return [gap, *events[gone:]]


def end_of(logs: Logs, limit: int) -> str:
    return asyncio.run(end_of_log(cast(Agent, logs), "session", limit))


texts = st.lists(st.one_of(st.none(), st.text("ab\n", min_size=1, max_size=9)), max_size=200)


@given(st.lists(st.tuples(texts, st.integers(0, 200)), min_size=1, max_size=4), st.integers(1, 300))
def test_it_is_what_reading_from_the_beginning_gives(runs: list[tuple[list[str | None], int]], limit: int) -> None:
    names = ["", *(f"run-{number}" for number in range(1, len(runs)))]
    logs = Logs({name: a_log(told, min(gone, len(told))) for name, (told, gone) in zip(names, runs, strict=True)})

    assert end_of(logs, limit) == logs.text(limit)


@pytest.mark.parametrize(("size", "count"), [(100, 100_000), (60_000, 200)], ids=["lines", "large pieces"])
def test_little_more_is_read_than_is_told(size: int, count: int) -> None:
    logs = Logs({"": [], "run-1": a_log(["x" * size] * count)})

    assert len(end_of(logs, 1 << 20)) == 1 << 20
    assert logs.given < 4 << 20
