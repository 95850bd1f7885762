"""The runs of one session and their log, whether its sandbox lives or not."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import structlog

from roost.agent.journal import CAP_BYTES, Journal
from roost.agent.log_format import Record, encode_json
from roost.agent.log_writer import LogWriter
from roost.agent.runs import BATCH, Acceptance, Checkpoint, Kind, LogEntry, OpenRun, Run, apply, lost_end, merge
from roost.wire.errors import AgentError, RunAlreadyExists, RunNotFound, TooManyRuns
from roost.wire.reasons import Reason
from roost.wire.runs import Event, EventKind, Page, RunEnd, RunSpec, RunState, RunSummary

MAX_WAITING = 64
"""As many runs of a session may wait for their turn."""
MAX_WAITING_CODE = 32 << 20
"""So many characters of code may wait in a session, unless it is that of one run."""
RETRY_FIRST_S, RETRY_LAST_S = 0.05, 1.0
"""How long to wait before a full disk is tried again, growing from the one to the other."""

log = structlog.get_logger(__name__)


class SessionRuns:
    """A session's runs and their log. Works without a sandbox too, for sessions that have ended.

    Making one reads the whole log, so that is done in a thread.
    """

    def __init__(
        self,
        folder: Path,
        writer: LogWriter,
        on_ended: Callable[[RunSummary], None] = lambda run: None,
        cap_bytes: int = CAP_BYTES,
    ) -> None:
        self._on_ended = on_ended
        self._name = folder.name
        self._journal = Journal(folder, writer, cap_bytes, self._checkpoint)
        self._runs: list[Run] = [Run(0, Acceptance(run_id="", code="", mode="", echo=False, at=0.0), RunState.RUNNING)]
        self._by_id: dict[str, Run] = {"": self._runs[0]}
        self._changed = asyncio.Event()
        """Set once, by the next change of any run; another one follows it."""
        self._appending = asyncio.Lock()
        self._users = _Users()
        self.last_frame = 0
        self.state_lost = False
        """Whether the next run begins in a new sandbox although runs had started in an older one."""
        for record in self._journal.open():
            self._replay(record)

    def close(self) -> None:
        self._journal.close()

    def in_use(self) -> AbstractContextManager[None]:
        """Nobody may close this meanwhile."""
        return self._users

    @property
    def is_idle(self) -> bool:
        """Whether nobody uses it and every run has ended, so that it may be closed, and opened again when asked for."""
        return self._users.count == 0 and all(run.state is RunState.ENDED for run in self.all())

    # What readers ask

    def run(self, run_id: str) -> Run:
        """The run of an id, or `RunNotFound`."""
        try:
            return self._by_id[run_id]
        except KeyError:
            raise RunNotFound(f"there is no run {run_id!r} in this session") from None

    def numbered(self, number: int) -> Run | None:
        """The run of a number of ours; 0 is the session itself."""
        return self._runs[number] if number < len(self._runs) else None

    def all(self) -> list[Run]:
        """Every run but run 0, oldest first."""
        return self._runs[1:]

    async def read(self, run_id: str, *, after: int, max_bytes: int, wait_s: float) -> Page:
        with self.in_use():
            return await self._read(self.run(run_id), after, max_bytes, wait_s)

    async def _read(self, run: Run, after: int, max_bytes: int, wait_s: float) -> Page:
        if wait_s > 0:
            await self._wait_for(lambda: run.last_seq > after or run.state is RunState.ENDED, wait_s)
        summary = run.summary()
        read = self._journal.read
        if run.state is RunState.ENDED and after > run.last_seq:
            # The reader has seen what a loss of power took from the log.
            gap = {"first": run.last_seq + 1, "last": after, "bytes": 0}
            records = await asyncio.to_thread(read, run.number, run.last_seq - 1, run.last_seq, max_bytes)
            return Page(events=[Event(after, EventKind.GAP, gap), *(one.event() for one in records)], run=summary)
        if self._journal.is_cached(run.number, after):
            records = read(run.number, after, summary.last_seq, max_bytes)
        else:
            records = await asyncio.to_thread(read, run.number, after, summary.last_seq, max_bytes)
        return Page(events=[record.event() for record in records], run=summary)

    # What writers say

    async def accept(self, spec: RunSpec, then: Callable[[Run], object] = lambda run: None) -> tuple[Run, bool]:
        """The run of this id, made if there was none; it is in the log when this returns.

        Args:
            spec: what is to be done.
            then: what follows from a new run; if the caller is cancelled, before it hears of it.

        Raises:
            AgentError: the log cannot be written.
        """
        async with self._appending:
            known = self._by_id.get(spec.run_id)
            if known is not None:
                if not known.is_same(spec):
                    raise RunAlreadyExists(f"run {spec.run_id} exists with other code")
                return known, False
            waiting = self._waiting()
            if len(waiting) >= MAX_WAITING:
                raise TooManyRuns(f"{MAX_WAITING} runs wait in this session", hint="wait for some of them to end")
            if waiting and sum(len(run.acceptance.code) for run in waiting) + len(spec.code) > MAX_WAITING_CODE:
                raise TooManyRuns("too much code waits in this session", hint="wait for some of its runs to end")
            acceptance = Acceptance(
                run_id=spec.run_id,
                code=spec.code,
                mode=spec.mode,
                echo=spec.echo,
                at=time.time(),
                batch=spec.batch,
                timeout_s=spec.timeout_s,
            )
            record = Record(len(self._runs), 0, 0, acceptance.at, Kind.ACCEPTED, encode_json(acceptance))
            await self._append([record], lambda: then(self._add(record.run, acceptance)))
            return self._runs[record.run], True

    def _waiting(self) -> list[Run]:
        """The runs that have not begun; they begin in their order."""
        newest = itertools.takewhile(lambda run: run.started_at is None, reversed(self._runs))
        return [run for run in newest if run.state is RunState.ACCEPTED]

    async def wait_end(self, run: Run, wait_s: float) -> bool:
        """Wait for a run's end; whether it has come."""
        with self.in_use():
            await self._wait_for(lambda: run.state is RunState.ENDED, wait_s)
        return run.state is RunState.ENDED

    async def _wait_for(self, is_so: Callable[[], bool], wait_s: float) -> None:
        if is_so():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not is_so():
                    await self._changed.wait()

    async def append(
        self,
        run: Run,
        kind: Kind,
        data: Any,
        payload: bytes,
        frame: int = 0,
        then: Callable[[], object] = lambda: None,
    ) -> None:
        """Append one event, unless it is an answer that comes too late (see `append_all`)."""
        await self.append_all([(run, kind, data, payload, frame)], then)

    async def append_all(self, events: Sequence[LogEntry], then: Callable[[], object] = lambda: None) -> None:
        """Append events in their order with one write, let them change the runs, and wake the readers.

        Args:
            events: what has happened.
            then: what follows from it; if the caller is cancelled, before it hears of it.

        Raises:
            AgentError: the disk did not take it; no run has changed.
        """
        now = time.time()
        async with self._appending:
            # A run may have ended while its answer waited for the lock.
            events = [e for e in events if e[1] is not Kind.INPUT or e[0].state is RunState.WAITING]
            if not events:
                return
            events = merge(events)
            seqs: dict[int, int] = {}
            records = []
            for run, kind, _, payload, frame in events:
                seq = seqs[run.number] = seqs.get(run.number, run.last_seq) + 1
                records.append(Record(run.number, seq, frame, now, kind, payload))

            def follow() -> None:
                self._wake()  # before whoever hears of ends: somebody waits for what is read
                for run, kind, data, _, frame in events:
                    apply(run, kind, data, now)
                    self._note(run, kind, frame)
                    if kind is Kind.INPUT:
                        run.unanswered[data["prompt"]] = data.get("text")
                    if kind is Kind.END:
                        self._on_ended(run.summary())
                then()

            await self._append(records, follow)
            if self._journal.is_too_long:
                await self._trim()

    async def _append(self, records: Sequence[Record], then: Callable[[], object]) -> None:
        try:
            await self._journal.append(records, then)
        except OSError as error:
            raise AgentError(
                f"the run log cannot be written: {error}", hint="free some space on the node's disk"
            ) from error

    async def _trim(self) -> None:
        try:
            await self._journal.trim()
        except OSError as error:  # the log is longer than it may be; the next event tries again
            log.warning("log.not_trimmed", session_id=self._name, error=str(error))

    async def move_cursor(self, run: Run, seq: int) -> None:
        """What a compatible client has been sent of a run.

        Raises:
            AgentError: the log cannot be written.
        """

        def move() -> None:
            run.cursor = seq

        with self.in_use():
            async with self._appending:
                payload = encode_json({"seq": seq})
                await self._append([Record(run.number, 0, 0, time.time(), Kind.CURSOR, payload)], move)

    async def lose(self, reason: Reason) -> None:
        """End every open run, because its sandbox is gone.

        Raises:
            AgentError: the log cannot be written.
        """
        end = lost_end(reason)
        events = [(run, Kind.END, end, encode_json(end), 0) for run in self.all() if run.state is not RunState.ENDED]
        with self.in_use():
            await self.append_all(events)
            self._wake()

    async def restart(self, reason: Reason) -> None:
        """End every open run, and be ready for the frames of a new runner. A second time changes nothing.

        Raises:
            AgentError: the log cannot be written.
        """
        with self.in_use():
            await self.lose(reason)
            async with self._appending:
                record = Record(0, 0, 0, time.time(), Kind.RESTARTED, encode_json({}))
                await self._append([record], self._begin_anew)

    def _begin_anew(self) -> None:
        self.last_frame = 0
        self.state_lost = any(run.started_at is not None for run in self.all())

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _add(self, number: int, acceptance: Acceptance) -> Run:
        run = Run(number, acceptance)
        self._runs.append(run)
        self._by_id[acceptance.run_id] = run
        return run

    def _note(self, run: Run, kind: Kind, frame: int) -> None:
        self.last_frame = max(self.last_frame, frame)
        if kind is Kind.STARTED and run.acceptance.mode != BATCH:
            self.state_lost = False

    def _checkpoint(self) -> bytes:
        runs = {
            run.number: OpenRun(state=run.state, prompts=run.prompts, unanswered=run.unanswered)
            for run in self.all()
            if run.state is not RunState.ENDED
        }
        return encode_json(Checkpoint(last_frame=self.last_frame, state_lost=self.state_lost, runs=runs))

    def _go_on_from(self, checkpoint: Checkpoint) -> None:
        self.last_frame, self.state_lost = checkpoint.last_frame, checkpoint.state_lost
        for number, known in checkpoint.runs.items():
            run = self._runs[number]
            run.state, run.prompts, run.unanswered = known.state, known.prompts, dict(known.unanswered)

    def _replay(self, record: Record) -> None:
        if record.kind is Kind.CHECKPOINT:
            self._go_on_from(msgspec.json.decode(record.payload, type=Checkpoint))
            return
        if record.kind is Kind.RESTARTED:
            self._begin_anew()
            return
        if record.kind is Kind.ACCEPTED:
            self._add(record.run, msgspec.json.decode(record.payload, type=Acceptance))
            return
        run = self._runs[record.run]
        self._note(run, record.kind, record.frame)
        if record.kind is Kind.CURSOR:
            run.cursor = msgspec.json.decode(record.payload)["seq"]
            return
        run.last_seq = record.seq - 1
        apply(run, record.kind, _decode_logged(record, run), record.at)


class _Users:
    """How many use something now."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *exc_info: object) -> None:
        self.count -= 1


def _decode_logged(record: Record, run: Run) -> Any:
    match record.kind:
        case Kind.END:
            return msgspec.json.decode(record.payload, type=RunEnd)
        case Kind.PROMPT:
            return msgspec.json.decode(record.payload, type=_Prompted)
        case Kind.INPUT:
            answer = msgspec.json.decode(record.payload)
            run.unanswered[answer["prompt"]] = answer.get("text")
            return answer
        case _:
            return record.payload


class _Prompted(msgspec.Struct, frozen=True):
    prompt: int


async def until_written(session_id: str, append: Callable[[], Awaitable[object]], closing: asyncio.Event) -> bool:
    """Append, again and again while the disk is full; False if `closing` came first and nothing was appended."""
    delay = 0.0
    while True:
        try:
            await append()
        except AgentError as error:
            if not delay:
                log.warning("log.stalled", session_id=session_id, error=str(error))
            delay = min(delay * 2 or RETRY_FIRST_S, RETRY_LAST_S)
        else:
            if delay:
                log.info("log.resumed", session_id=session_id)
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await closing.wait()
        if closing.is_set():
            return False
