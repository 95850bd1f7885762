"""Starting runs, answering their prompts, reading what they say."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from roost.engines.base import Engine
from roost.server.domain.console import console_of, exit_code_of
from roost.server.domain.sessions import Session, is_kept_for_job
from roost.server.services.log_ends import end_of_log
from roost.server.store import runs as rows
from roost.server.store.base import Store
from roost.wire.agent import Agent
from roost.wire.errors import InvalidParameters, RunNotFound, SessionNotFound, SessionNotRunning
from roost.wire.ids import RUN_ID, new_run_id
from roost.wire.runs import (
    BatchStages,
    Event,
    EventKind,
    InterruptOutcome,
    Page,
    RunEnd,
    RunSpec,
    RunState,
    RunStatus,
    RunSummary,
)
from roost.wire.sessions import SessionState

POLL_S = 2.0
"""The longest that a poll waits (spec/execution.md §2.1)."""
GATHER_S = 0.02
"""How long a poll that has output goes on to gather more."""
POLL_BYTES = 1 << 20
PROMPT_WITHIN = 100
"""Among as many of its latest events the prompt of a run that waits is looked for; threads may print behind it."""
LOG_CHARACTERS = 1 << 20
"""As much of a session's output as the logs endpoint answers with: the last of it."""


class Polled(msgspec.Struct, frozen=True, kw_only=True):
    """What one compatible poll answers."""

    run_id: str
    status: str
    exit_code: int | None
    options: dict[str, Any] | None
    console: list[list[Any]]
    after: int
    """The event that it begins behind."""
    seq: int
    """The last event in it; deliver it, then say so with `Runs.delivered`."""
    end: RunEnd | None = None


class Runs:
    """What can be done with the runs of a session."""

    def __init__(self, store: Store, engine: Engine) -> None:
        self._store = store
        self._engine = engine
        self._polls: dict[tuple[str, str], asyncio.Timeout] = {}
        """The poll that waits on a run now; a newer one takes over and lets its time run out."""

    async def start(
        self,
        session: Session,
        code: str,
        *,
        run_id: str | None = None,
        batch: BatchStages | None = None,
        echo: bool = True,
        timeout_s: float | None = None,
    ) -> RunSummary:
        """Accept a run of code, or of the stages of a batch (see `Agent.start`).

        Args:
            session: it has to run.
            code: nothing in a batch.
            run_id: chosen by the client, or None.
            batch: what a batch run does; None executes the code.
            echo: whether the value of the last expression is a result.
            timeout_s: how long it may run, in seconds; the session's own limit holds too.

        Raises:
            InvalidParameters: the run id is none.
            SessionNotRunning: the session does not run, with the reason.
            TooManyRuns: too many wait in the session.
        """
        if run_id is not None and not RUN_ID.fullmatch(run_id):
            raise InvalidParameters(
                f"not a run id: {run_id!r:.100}",
                hint="1 to 64 letters, digits and `_ . : -`, not dots alone; or leave it to us",
            )
        if run_id is not None and is_kept_for_job(session, run_id):
            raise InvalidParameters(f"run id {run_id} is kept for the session's command", hint="choose another run id")
        agent = await self._running(session)
        limits_s = [limit_s for limit_s in (timeout_s, session.spec.exec_timeout_s) if limit_s is not None]
        spec = RunSpec(
            run_id=run_id or new_run_id(),
            code=code if batch is None else "",
            mode="query" if batch is None else "batch",
            echo=echo,
            batch=batch,
            timeout_s=min(limits_s, default=None),
        )
        return await agent.start(session.id, spec)

    async def feed(self, session: Session, run_id: str, *, prompt: int | None, text: str | None) -> None:
        """Answer a prompt (see `Agent.feed`)."""
        await (await self._executing(session)).feed(session.id, run_id, prompt=prompt, text=text)

    async def interrupt(
        self, session: Session, run_id: str | None = None, *, grace_s: float | None = None
    ) -> InterruptOutcome:
        """Interrupt a run, or whatever runs now (see `Agent.interrupt`)."""
        return await (await self._executing(session)).interrupt(session.id, run_id, grace_s=grace_s)

    async def complete(self, session: Session, text: str) -> list[str]:
        """What the end of a text may become (see `Agent.complete`)."""
        return await (await self._running(session)).complete(session.id, text)

    async def list(self, session: Session) -> list[RunSummary]:
        """The session's runs, oldest first."""
        if session.node_id is None:
            return []
        try:
            return await (await self._agent(session)).runs(session.id)
        except SessionNotFound:  # its log is gone; what is left is what was written down
            return await self._store.read(lambda c: rows.of_session(c, session.id))

    async def get(self, session: Session, run_id: str) -> RunSummary:
        """One run's summary.

        Raises:
            RunNotFound: there is no such run.
        """
        return (await self.read(session, run_id, after=0, max_bytes=0)).run

    async def read(
        self, session: Session, run_id: str, *, after: int, max_bytes: int = 1 << 18, wait_s: float = 0.0
    ) -> Page:
        """Events of a run (see `Agent.read`); of sessions that have ended too."""
        if session.node_id is None:
            raise RunNotFound(f"session {session.name} has had no runs")
        agent = await self._agent(session)
        return await agent.read(session.id, run_id, after=after, max_bytes=max_bytes, wait_s=wait_s)

    async def poll(self, session: Session, run_id: str, *, after: int | None = None) -> Polled:
        """The next part of a run for a compatible client, as soon as there is something worth an answer.

        It begins behind the run's cursor, or behind `after` for a client that says what it has.

        Answers at once on end or prompt; with other output after `GATHER_S` or `POLL_BYTES`; else after `POLL_S`.
        A second poll of the same run takes over; the first is answered empty.
        """
        key = (session.id, run_id)
        agent = await self._agent(session)
        cursor = await agent.cursor(session.id, run_id) if after is None else after
        try:
            async with asyncio.timeout(None) as turn:
                if (older := self._polls.get(key)) is not None:
                    older.reschedule(asyncio.get_running_loop().time())
                self._polls[key] = turn
                try:
                    return await _gather(agent, session.id, run_id, cursor, POLL_S)
                finally:
                    if self._polls.get(key) is turn:
                        del self._polls[key]
        except TimeoutError:
            return _polled(run_id, [], await agent.read(session.id, run_id, after=cursor), cursor)

    async def part(self, session: Session, run_id: str, *, after: int, max_bytes: int, wait_s: float) -> Polled:
        """The next part of a run behind an event, as `poll` would answer it; leaves the poll's cursor alone.

        It has `max_bytes`, unless a single event has more.
        """
        agent = await self._agent(session)
        return await _gather(agent, session.id, run_id, after, wait_s, max_bytes)

    async def delivered(self, session: Session, polled: Polled) -> None:
        """The answer was written to its client: the next poll goes on after it."""
        agent = await self._agent(session)
        # Behind `after` a client may have named a number that the run has not reached.
        if polled.seq > max(polled.after, await agent.cursor(session.id, polled.run_id)):
            await agent.move_cursor(session.id, polled.run_id, polled.seq)

    async def undelivered(self, session: Session, polled: Polled) -> None:
        """The answer did not arrive after all: the next poll repeats it, unless a later one was delivered."""
        agent = await self._agent(session)
        if polled.after < polled.seq == await agent.cursor(session.id, polled.run_id):
            await agent.move_cursor(session.id, polled.run_id, polled.after)

    async def log_text(self, session: Session) -> str:
        """What the session's programs have written, by run; the end of it where it is long."""
        if session.node_id is None:
            return ""
        return await end_of_log(await self._agent(session), session.id, LOG_CHARACTERS)

    async def _executing(self, session: Session) -> Agent:
        """Where something may run: a bootstrap script does before its session is usable."""
        if session.state is SessionState.PREPARING and session.node_id is not None:
            return await self._agent(session)
        return await self._running(session)

    async def _running(self, session: Session) -> Agent:
        if session.state is not SessionState.RUNNING:
            why = f": {session.reason.sentence}" if session.reason is not None else ""
            raise SessionNotRunning(f"session {session.name} is {session.state}{why}")
        return await self._agent(session)

    async def _agent(self, session: Session) -> Agent:
        if session.node_id is None:
            raise SessionNotRunning(f"session {session.name} has not started")
        return await self._engine.agent(session.node_id)


async def _gather(
    agent: Agent, session_id: str, run_id: str, cursor: int, wait_s: float, max_bytes: int = POLL_BYTES
) -> Polled:
    events: list[Event] = []
    size = 0
    has_output = False
    deadline = time.monotonic() + wait_s
    while True:
        seq = events[-1].seq if events else cursor
        rest = max(0.0, deadline - time.monotonic())
        page = await agent.read(session_id, run_id, after=seq, max_bytes=max_bytes - size, wait_s=rest)
        events += page.events
        stage = next((index for index, event in enumerate(events) if event.kind is EventKind.STAGE), None)
        if stage is not None:  # what comes behind it is for the next part
            return _polled(run_id, events[: stage + 1], page, cursor)
        size += sum(_size(event) for event in page.events)
        at_end = page.run.last_seq <= (events[-1].seq if events else cursor)
        settled = at_end and page.run.state in (RunState.ENDED, RunState.WAITING)
        if settled or size >= max_bytes or time.monotonic() >= deadline:
            polled = _polled(run_id, events, page, cursor)
            if polled.options == {}:  # whoever asks again has to know whether to hide what is typed
                latest = await agent.read(session_id, run_id, after=max(0, page.run.last_seq - PROMPT_WITHIN))
                polled = msgspec.structs.replace(polled, options=_asked(latest.events))
            return polled
        if not has_output and console_of(page.events):
            has_output = True
            deadline = min(deadline, time.monotonic() + GATHER_S)


def _size(event: Event) -> int:
    if isinstance(event.data, str):
        return len(event.data)
    return sum(map(len, event.data.get("mime", {}).values()))


def _polled(run_id: str, events: list[Event], page: Page, cursor: int) -> Polled:
    """How the run stands after these events: it has ended or waits only for who has seen everything before."""
    seq = events[-1].seq if events else cursor
    end = page.run.end if page.run.state is RunState.ENDED and page.run.last_seq <= seq else None
    status: str = "continued"
    options: dict[str, Any] | None = None
    exit_code: int | None = None
    last = events[-1] if events else None
    if last is not None and last.kind is EventKind.STAGE:
        status, exit_code = f"{last.data['stage']}-finished", last.data["exit_code"]
    elif end is not None and end.status is RunStatus.EXEC_TIMEOUT:
        status = "exec-timeout"
    elif end is not None:
        status, exit_code = "finished", exit_code_of(end, page.run.mode)
    elif page.run.state is RunState.WAITING and page.run.last_seq <= seq:
        status = "waiting-input"
        options = _asked(events)
    return Polled(
        run_id=run_id,
        status=status,
        exit_code=exit_code,
        options=options,
        console=console_of(events),
        after=cursor,
        seq=seq,
        end=end,
    )


def _asked(events: Sequence[Event]) -> dict[str, Any]:
    """What the last prompt among these wants; empty where there is none."""
    prompts = [event for event in events if event.kind is EventKind.PROMPT]
    return {"is_password": bool(prompts[-1].data["password"])} if prompts else {}
