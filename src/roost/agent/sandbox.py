"""One session on this node: its log, its runs, and the link to its runner."""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from roost.agent.journal import CAP_BYTES, Journal, LogWriter, Record, encode_json
from roost.agent.link import RunnerLink, payload_of
from roost.agent.runs import (
    BATCH,
    Acceptance,
    Checkpoint,
    Completions,
    Ended,
    Kind,
    OpenRun,
    ProtocolBreachError,
    Run,
    Started,
    admit,
    apply,
    lost_end,
    merge,
    run_end,
)
from roost.runner.protocol import MAX_COMMAND, MAX_PAYLOAD, STAGES, Frame
from roost.runner.protocol import Kind as FrameKind
from roost.runtimes.cgroups import SandboxGroup
from roost.wire.errors import (
    AgentError,
    InvalidParameters,
    RunAlreadyExists,
    RunNotFound,
    SessionNotRunning,
    TooManyRuns,
)
from roost.wire.reasons import Reason
from roost.wire.runs import (
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

HELLO_TIMEOUT_S = 20.0
ACK_BYTES = 256 << 10
"""So much from the runner is acknowledged at once; less within `ACK_AFTER_S`."""
ACK_AFTER_S = 0.05
PENDING_FRAMES = 256
"""As many frames may wait for the log before the link is read no further."""
MAX_WAITING = 64
"""As many runs of a session may wait for their turn."""
MAX_WAITING_CODE = 32 << 20
"""So many characters of code may wait in a session, unless it is that of one run."""
COMPLETED_WITHIN_S = 2.0
COMPLETED_CHARACTERS = 4096
"""How much before the cursor is looked at."""
KILLED_WITHIN_S = 5.0
"""How long the end of a killed run may take to be told."""
RETRY_FIRST_S, RETRY_LAST_S = 0.05, 1.0
"""How long to wait before a full disk is tried again, growing from the one to the other."""

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Hello(msgspec.Struct, frozen=True):
    protocol: int
    pid: int
    last: int
    seen: int
    generation: int
    abilities: tuple[str, ...] = ()


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
        self._changed = asyncio.Condition()
        self._appending = asyncio.Lock()
        self._users = 0
        self.last_frame = 0
        self.state_lost = False
        """Whether the next run begins in a new sandbox although runs had started in an older one."""
        for record in self._journal.open():
            self._replay(record)

    def close(self) -> None:
        self._journal.close()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Nobody may close this meanwhile."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    @property
    def is_idle(self) -> bool:
        """Whether nobody uses it and every run has ended, so that it may be closed, and opened again when asked for."""
        return self._users == 0 and all(run.state is RunState.ENDED for run in self.all())

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
        if wait_s > 0 and run.last_seq <= after and run.state is not RunState.ENDED:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s), self._changed:
                    await self._changed.wait_for(lambda: run.last_seq > after or run.state is RunState.ENDED)
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

    async def accept(self, spec: RunSpec) -> tuple[Run, bool]:
        """The run of this id, made if there was none; it is in the log when this returns."""
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
            number = len(self._runs)
            await self._journal.append([Record(number, 0, 0, acceptance.at, Kind.ACCEPTED, encode_json(acceptance))])
            return self._add(number, acceptance), True

    def _waiting(self) -> list[Run]:
        """The runs that have not begun; they begin in their order."""
        newest = itertools.takewhile(lambda run: run.started_at is None, reversed(self.all()))
        return [run for run in newest if run.state is RunState.ACCEPTED]

    async def wait_end(self, run: Run, wait_s: float) -> bool:
        """Wait for a run's end; whether it has come."""
        with self.in_use(), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: run.state is RunState.ENDED)
        return run.state is RunState.ENDED

    async def append(self, run: Run, kind: Kind, data: Any, payload: bytes, frame: int = 0) -> bool:
        """Append one event, let it change the run, and wake the readers. False for an answer that came too late."""
        return await self.append_all([(run, kind, data, payload, frame)])

    async def append_all(self, events: Sequence[tuple[Run, Kind, Any, bytes, int]]) -> bool:
        """Append events in their order with one write; False if there was none.

        Raises:
            OSError: the disk did not take it; no run has changed.
        """
        now = time.time()
        async with self._appending:
            # A run may have ended while its answer waited for the lock.
            events = [e for e in events if e[1] is not Kind.INPUT or e[0].state is RunState.WAITING]
            events = merge(events)
            seqs: dict[int, int] = {}
            records = []
            for run, kind, _, payload, frame in events:
                seq = seqs[run.number] = seqs.get(run.number, run.last_seq) + 1
                records.append(Record(run.number, seq, frame, now, kind, payload))
            await self._journal.append(records)
            for run, kind, data, _, frame in events:
                apply(run, kind, data, now)
                self._note(run, kind, frame)
                if kind is Kind.INPUT:
                    run.unanswered[data["prompt"]] = data.get("text")
                if kind is Kind.END:
                    self._on_ended(run.summary())
            await self._trim()
        await self.wake()
        return bool(events)

    async def _trim(self) -> None:
        try:
            await self._journal.trim()
        except OSError as error:  # the log is longer than it may be; the next event tries again
            log.warning("log.not_trimmed", session_id=self._name, error=str(error))

    async def move_cursor(self, run: Run, seq: int) -> None:
        with self.in_use():
            await to_its_end(self._move_cursor(run, seq))

    async def _move_cursor(self, run: Run, seq: int) -> None:
        async with self._appending:
            payload = encode_json({"seq": seq})
            await self._journal.append([Record(run.number, 0, 0, time.time(), Kind.CURSOR, payload)])
            run.cursor = seq

    async def lose(self, reason: Reason) -> None:
        """End every open run, because its sandbox is gone."""
        end = lost_end(reason)
        events = [(run, Kind.END, end, encode_json(end), 0) for run in self.all() if run.state is not RunState.ENDED]
        with self.in_use():
            if events:
                await to_its_end(self.append_all(events))
            await self.wake()

    async def restart(self, reason: Reason) -> None:
        """End every open run, and be ready for the frames of a new runner. A second time changes nothing.

        Raises:
            AgentError: the log cannot be written.
        """
        with self.in_use():
            await self.lose(reason)
            await to_its_end(self._restart())

    async def _restart(self) -> None:
        async with self._appending:
            await self._journal.append([Record(0, 0, 0, time.time(), Kind.RESTARTED, encode_json({}))])
            self._begin_anew()

    def _begin_anew(self) -> None:
        self.last_frame = 0
        self.state_lost = any(run.started_at is not None for run in self.all())

    async def wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

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


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Do work that appends to a log; if the caller is cancelled, when it is done.

    What is half in the log would get its sequence numbers twice, and what is logged but not sent would wait for ever.

    Raises:
        AgentError: the log cannot be written.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
    except OSError as error:
        raise AgentError(
            f"the run log cannot be written: {error}", hint="free some space on the node's disk"
        ) from error


async def until_written(session_id: str, append: Callable[[], Awaitable[object]], closing: asyncio.Event) -> bool:
    """Append, again and again while the disk is full; False if `closing` came first and nothing was appended."""
    delay = 0.0
    while True:
        try:
            await append()
        except (OSError, AgentError) as error:
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


def _work(spec: RunSpec | Acceptance) -> dict[str, Any]:
    """What the runner is told of a run."""
    work: dict[str, Any] = {"code": spec.code, "mode": spec.mode, "echo": spec.echo}
    if spec.batch is not None:
        work["stages"] = [getattr(spec.batch, stage) for stage in STAGES]
    return work


class LiveSandbox:
    """A session whose sandbox lives: takes the runner's frames into the log, and sends it what was accepted."""

    def __init__(
        self,
        session_id: str,
        runs: SessionRuns,
        group: SandboxGroup | None,
        limit_bytes: int,
        on_breach: Callable[[str, str], None],
    ) -> None:
        self._session_id = session_id
        self.runs = runs
        self._group = group
        self._limit_bytes = limit_bytes
        self._on_breach = on_breach
        self._link: RunnerLink | None = None
        self._hello: asyncio.Future[Hello] | None = None
        self._frames: deque[Frame] = deque()
        self._arrived = asyncio.Event()
        self._closing = asyncio.Event()
        self._acking: asyncio.TimerHandle | None = None
        self._unacknowledged = 0
        self._using = contextlib.ExitStack()
        self._using.enter_context(runs.in_use())
        self._received = runs.last_frame
        self._state_lost = runs.state_lost
        self._oom_kills = group.oom_kills() if group is not None else 0
        self._abilities: frozenset[str] = frozenset()
        self._questions: dict[int, asyncio.Future[list[str]]] = {}
        self._asked = 0
        self._deadlines: dict[int, asyncio.TimerHandle] = {}
        self._escalated: set[int] = set()
        self._pump = asyncio.create_task(self._take_frames(), name=f"sandbox-{session_id}")

    async def connect(self, socket_path: Path, generation: int, uid: int | None, pid: int) -> None:
        """Connect to the runner and take over what it buffered.

        Raises:
            AgentError: whoever listens there is not our runner, or does not answer.
        """
        self._received = self.runs.last_frame
        self._hello = asyncio.get_running_loop().create_future()
        # Whoever answers may be refused before its hello is waited for.
        self._hello.add_done_callback(lambda hello: hello.cancelled() or hello.exception())
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                self._link = await RunnerLink.connect(socket_path, self._on_frames, self._on_lost)
                peer_pid, peer_uid = self._link.peer()
                if peer_pid != pid or (uid is not None and peer_uid != uid):
                    raise AgentError(f"process {peer_pid} of uid {peer_uid} answers in place of the runner {pid}")
                message = {"after": self.runs.last_frame, "generation": generation}
                self._link.send(FrameKind.RESUME, 0, message)
                hello = await self._hello
        except (OSError, TimeoutError) as error:
            raise AgentError(f"the runner does not answer: {error!r}") from error
        if hello.protocol != 1:
            raise AgentError(f"the runner speaks protocol {hello.protocol}, we speak 1")
        self._abilities = frozenset(hello.abilities)
        self._send_again(hello)

    async def aclose(self) -> None:
        """Let go of the runner, which goes on."""
        for deadline in self._deadlines.values():
            deadline.cancel()
        if self._acking is not None:
            self._send_ack()  # the runner needs all its room for the time without us
        if self._link is not None:
            self._link.close()
        # Not cancelled: what is half in the log would get its sequence numbers twice.
        self._closing.set()
        self._arrived.set()
        await self._pump
        self._using.close()

    async def start(self, spec: RunSpec) -> RunSummary:
        self._check_fits(_work(spec), "the code")
        if spec.mode == BATCH and BATCH not in self._abilities:
            raise InvalidParameters("this session's runner knows no batch mode yet", hint="restart the session")
        return await to_its_end(self._start(spec))

    async def _start(self, spec: RunSpec) -> RunSummary:
        run, created = await self.runs.accept(spec)
        if created:
            self._send_start(run)
        return run.summary(created=created)

    async def feed(self, run_id: str, prompt: int | None, text: str | None) -> None:
        run = self.runs.run(run_id)
        number = run.prompts if prompt is None else prompt
        if not 1 <= number <= run.prompts:
            raise InvalidParameters(f"run {run_id} has had no prompt {number}", hint="wait for a prompt event first")
        if run.state is not RunState.WAITING or number != run.prompts:
            return
        await to_its_end(self._answer(run, number, text))

    async def _answer(self, run: Run, number: int, text: str | None) -> None:
        answer: dict[str, Any] = {"prompt": number, "eof": True} if text is None else {"prompt": number, "text": text}
        self._check_fits(answer, "the line")
        if await self.runs.append(run, Kind.INPUT, answer, encode_json(answer)):
            self._send(FrameKind.INPUT, run.number, answer)

    async def interrupt(self, run_id: str | None, grace_s: float | None) -> InterruptOutcome:
        run = self.runs.run(run_id) if run_id is not None else self._in_progress()
        if run is None:
            # It may begin before this arrives; the runner knows.
            self._send(FrameKind.INTERRUPT, 0, {})
            return InterruptOutcome.IDLE
        if run.state is RunState.ENDED:
            return InterruptOutcome.FINISHED
        is_queued = run.state is RunState.ACCEPTED
        self._send(FrameKind.INTERRUPT, run.number, {})
        if is_queued:
            return InterruptOutcome.DEQUEUED
        return await self._see_through(run, grace_s) if grace_s is not None else InterruptOutcome.SENT

    async def _see_through(self, run: Run, grace_s: float) -> InterruptOutcome:
        if not await self.runs.wait_end(run, grace_s):
            self._escalated.add(run.number)
            if not self._kill(run) or not await self.runs.wait_end(run, KILLED_WITHIN_S):
                return InterruptOutcome.SENT
        assert run.end is not None
        if run.end.reason is not None and run.end.reason.code == "interrupt-escalated":
            return InterruptOutcome.ESCALATED
        is_interrupted = run.end.status is RunStatus.INTERRUPTED
        return InterruptOutcome.INTERRUPTED if is_interrupted else InterruptOutcome.FINISHED

    def _in_progress(self) -> Run | None:
        return next((run for run in self.runs.all() if run.state in (RunState.RUNNING, RunState.WAITING)), None)

    async def complete(self, text: str) -> list[str]:
        if "complete" not in self._abilities:
            return []
        self._asked += 1
        number = self._asked
        question: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._questions[number] = question
        try:
            self._send(FrameKind.COMPLETE, 0, {"id": number, "text": text[-COMPLETED_CHARACTERS:]})
            async with asyncio.timeout(COMPLETED_WITHIN_S):
                return await question
        except TimeoutError:
            return []
        finally:
            del self._questions[number]

    def _kill(self, run: Run) -> bool:
        """Kill what works on a run; False where the runner cannot."""
        if "kill" not in self._abilities:
            return False
        self._send(FrameKind.KILL, run.number, {})
        return True

    def _limit_time(self, run: Run) -> None:
        """See to it that a run which has begun ends in time."""
        limit_s = run.acceptance.timeout_s
        if limit_s is None or run.started_at is None or run.state is RunState.ENDED:
            return
        left = max(0.0, run.started_at + limit_s - time.time())
        deadline = asyncio.get_running_loop().call_later(left, self._on_deadline, run)
        if (older := self._deadlines.pop(run.number, None)) is not None:
            older.cancel()
        self._deadlines[run.number] = deadline

    def _on_deadline(self, run: Run) -> None:
        assert run.started_at is not None
        assert run.acceptance.timeout_s is not None
        # The loop's clock and the wall's drift apart; who looks at the end goes by the wall's.
        if time.time() - run.started_at < run.acceptance.timeout_s:
            self._limit_time(run)
            return
        with contextlib.suppress(SessionNotRunning):  # the next connection sees to it
            self._kill(run)

    def _keep_time(self, events: Sequence[tuple[Run, Kind, Any, bytes, int]]) -> None:
        for run, kind, *_ in events:
            if kind is Kind.STARTED:
                self._limit_time(run)
            elif kind is Kind.END and (deadline := self._deadlines.pop(run.number, None)) is not None:
                deadline.cancel()

    def _check_fits(self, message: dict[str, Any], what: str) -> None:
        size, limit = len(payload_of(message)), MAX_COMMAND if "long-commands" in self._abilities else MAX_PAYLOAD
        if size > limit:
            raise InvalidParameters(
                f"{what} takes {size} bytes, {limit} are possible", hint="upload it as a file, and read it from there"
            )

    def _send(self, kind: int, run: int, message: dict[str, Any]) -> None:
        if self._link is None:
            raise SessionNotRunning("the session's runner is not connected")
        self._link.send(kind, run, message)

    def _send_start(self, run: Run) -> None:
        self._send(FrameKind.START, run.number, _work(run.acceptance))

    def _send_again(self, hello: Hello) -> None:
        """What was accepted and perhaps not seen; the runner ignores what it has seen."""
        for run in self.runs.all():
            if run.state is RunState.ENDED:
                continue
            if run.number > hello.seen:
                self._send_start(run)
            self._limit_time(run)
            for number, text in run.unanswered.items():
                answer = {"prompt": number, "eof": True} if text is None else {"prompt": number, "text": text}
                self._send(FrameKind.INPUT, run.number, answer)

    def _on_frames(self, frames: Sequence[Frame]) -> None:
        self._frames.extend(frames)
        self._arrived.set()
        if len(self._frames) > PENDING_FRAMES and self._link is not None:
            self._link.pause()

    def _on_lost(self, error: Exception | None) -> None:
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(AgentError(f"the runner closed the connection: {error!r}"))
        elif error is not None and not isinstance(error, OSError):
            self._on_breach(self._session_id, str(error))

    async def _take_frames(self) -> None:
        while True:
            await self._arrived.wait()
            if self._closing.is_set():
                return
            self._arrived.clear()
            batch = list(self._frames)
            self._frames.clear()
            try:
                if not await self._log_frames(batch):
                    return
            except (ProtocolBreachError, msgspec.DecodeError) as error:
                log.warning("sandbox.protocol_breached", session_id=self._session_id, error=str(error))
                if self._link is not None:
                    self._link.close()
                self._on_breach(self._session_id, str(error))
                return
            if self._link is not None:
                self._link.resume()

    async def _log_frames(self, frames: Sequence[Frame]) -> bool:
        """Check, append with one write, acknowledge.

        False if this was closed while the disk was full: what is not in the log the runner keeps for the next agent.
        """
        for frame in frames:
            if frame.kind == FrameKind.HELLO:
                self._take_hello(frame)
            elif frame.kind == FrameKind.COMPLETIONS:
                self._take_completions(frame)
        numbered = [frame for frame in frames if frame.kind not in (FrameKind.HELLO, FrameKind.COMPLETIONS)]
        events: list[tuple[Run, Kind, Any, bytes, int]] = []
        ahead: dict[int, Run] = {}
        try:
            for frame in numbered:
                events.append(self._check(frame, ahead))
        finally:  # what came before a breach is in the log all the same
            is_logged = not events or await self._append(events)
        if is_logged:
            self._keep_time(events)
        if numbered and is_logged:
            self._acknowledge(sum(len(frame.payload) for frame in numbered))
        return is_logged

    async def _append(self, events: Sequence[tuple[Run, Kind, Any, bytes, int]]) -> bool:
        return await until_written(self._session_id, lambda: self.runs.append_all(events), self._closing)

    def _acknowledge(self, size: int) -> None:
        """Soon, or at once where the runner may run out of room: each time wakes it, perhaps in the middle of a run."""
        self._unacknowledged += size
        if self._unacknowledged >= ACK_BYTES:
            self._send_ack()
        elif self._acking is None:
            self._acking = asyncio.get_running_loop().call_later(ACK_AFTER_S, self._send_ack)

    def _send_ack(self) -> None:
        if self._acking is not None:
            self._acking.cancel()
        self._acking, self._unacknowledged = None, 0
        if self._link is not None:
            self._link.send(FrameKind.ACK, 0, {"frame": self.runs.last_frame})

    def _check(self, frame: Frame, ahead: dict[int, Run]) -> tuple[Run, Kind, Any, bytes, int]:
        """One frame as an event; `ahead` holds the runs as they will be once the events before it are in the log."""
        self._received += 1
        if frame.frame != self._received:
            raise ProtocolBreachError(f"frame {frame.frame} where {self._received} is due")
        kind, run = self._kind(frame), self._run(frame)
        expected = ahead.get(run.number) or ahead.setdefault(run.number, run.copy())
        data, payload = admit(expected, kind, frame.payload), frame.payload
        if kind is Kind.END:
            data = self._end(expected, data)
            payload = encode_json(data)
        elif kind is Kind.STARTED and self._state_lost and run.acceptance.mode != BATCH:
            # By a restart, of which the new runner does not know.
            self._state_lost = False
            data = Started(state_lost=True)
            payload = encode_json(data)
        apply(expected, kind, data, time.time())
        return run, kind, data, payload, frame.frame

    def _take_hello(self, frame: Frame) -> None:
        if self._hello is None or self._hello.done():
            raise ProtocolBreachError("a second hello")
        self._hello.set_result(msgspec.json.decode(frame.payload, type=Hello))

    def _take_completions(self, frame: Frame) -> None:
        answer = msgspec.json.decode(frame.payload, type=Completions)
        question = self._questions.get(answer.id)
        if question is not None and not question.done():
            question.set_result(answer.completions)

    def _kind(self, frame: Frame) -> Kind:
        try:
            return Kind(frame.kind)
        except ValueError:
            raise ProtocolBreachError(f"frame of kind {frame.kind}") from None

    def _run(self, frame: Frame) -> Run:
        run = self.runs.numbered(frame.run)
        if run is None:
            raise ProtocolBreachError(f"frame of run {frame.run}, which does not exist")
        return run

    def _end(self, run: Run, ended: Ended) -> RunEnd:
        peak, kills = 0, 0
        if self._group is not None:
            peak, kills = self._group.peak_bytes() or 0, self._group.oom_kills()
        oom_killed, self._oom_kills = kills > self._oom_kills, kills
        wall_s = time.time() - run.started_at if run.started_at is not None else 0.0
        return run_end(
            run,
            ended,
            wall_s=wall_s,
            peak_bytes=peak,
            limit_bytes=self._limit_bytes,
            oom_killed=oom_killed,
            escalated=run.number in self._escalated,
        )
