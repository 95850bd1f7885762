"""A session whose sandbox lives: the link to its runner, and what goes over it."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from roost.agent.link import RunnerLink, payload_of
from roost.agent.log_format import encode_json
from roost.agent.runs import (
    BATCH,
    Acceptance,
    Completions,
    Ended,
    Kind,
    LogEntry,
    ProtocolBreachError,
    Run,
    Started,
    admit,
    apply,
    run_end,
)
from roost.agent.session_runs import SessionRuns, until_written
from roost.runner.protocol import MAX_COMMAND, MAX_PAYLOAD, STAGES, Frame
from roost.runner.protocol import Kind as FrameKind
from roost.runtimes.cgroups import SandboxGroup
from roost.wire.errors import AgentError, InvalidParameters, SessionNotRunning
from roost.wire.runs import InterruptOutcome, RunEnd, RunSpec, RunState, RunStatus, RunSummary

HELLO_TIMEOUT_S = 20.0
ACK_BYTES = 256 << 10
"""So much from the runner is acknowledged at once; less within `ACK_AFTER_S`."""
ACK_AFTER_S = 0.05
PENDING_FRAMES = 256
"""As many frames may wait for the log before the link is read no further."""
COMPLETED_WITHIN_S = 2.0
COMPLETED_CHARACTERS = 4096
"""How much before the cursor is looked at."""
KILLED_WITHIN_S = 5.0
"""How long the end of a killed run may take to be told."""

log = structlog.get_logger(__name__)


class Hello(msgspec.Struct, frozen=True):
    protocol: int
    pid: int
    last: int
    seen: int
    generation: int
    abilities: tuple[str, ...] = ()


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
        self._memory = group.watch_memory() if group is not None else None
        self._oom_kills = self._memory.oom_kills() if self._memory is not None else 0
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
                self._link.send(FrameKind.RESUME, 0, payload_of(message))
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
        if self._memory is not None:
            self._memory.close()
        self._using.close()

    async def start(self, spec: RunSpec) -> RunSummary:
        work = self._payload(_work(spec), "the code")
        if spec.mode == BATCH and BATCH not in self._abilities:
            raise InvalidParameters("this session's runner knows no batch mode yet", hint="restart the session")
        run, created = await self.runs.accept(spec, lambda run: self._send_payload(FrameKind.START, run.number, work))
        return run.summary(created=created)

    async def feed(self, run_id: str, prompt: int | None, text: str | None) -> None:
        run = self.runs.run(run_id)
        number = run.prompts if prompt is None else prompt
        if not 1 <= number <= run.prompts:
            raise InvalidParameters(f"run {run_id} has had no prompt {number}", hint="wait for a prompt event first")
        if run.state is not RunState.WAITING or number != run.prompts:
            return
        answer: dict[str, Any] = {"prompt": number, "eof": True} if text is None else {"prompt": number, "text": text}
        payload = self._payload(answer, "the line")
        await self.runs.append(
            run,
            Kind.INPUT,
            answer,
            encode_json(answer),
            then=lambda: self._send_payload(FrameKind.INPUT, run.number, payload),
        )

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

    def _keep_time(self, events: Sequence[LogEntry]) -> None:
        for run, kind, *_ in events:
            if kind is Kind.STARTED:
                self._limit_time(run)
            elif kind is Kind.END and (deadline := self._deadlines.pop(run.number, None)) is not None:
                deadline.cancel()

    def _payload(self, message: dict[str, Any], what: str) -> bytes:
        """What a user has sent, as it goes to the runner."""
        payload, limit = payload_of(message), MAX_COMMAND if "long-commands" in self._abilities else MAX_PAYLOAD
        if len(payload) > limit:
            raise InvalidParameters(
                f"{what} takes {len(payload)} bytes, {limit} are possible",
                hint="upload it as a file, and read it from there",
            )
        return payload

    def _send(self, kind: int, run: int, message: dict[str, Any]) -> None:
        self._send_payload(kind, run, payload_of(message))

    def _send_payload(self, kind: int, run: int, payload: bytes) -> None:
        if self._link is None:
            raise SessionNotRunning("the session's runner is not connected")
        self._link.send(kind, run, payload)

    def _send_again(self, hello: Hello) -> None:
        """What was accepted and perhaps not seen; the runner ignores what it has seen."""
        for run in self.runs.all():
            if run.state is RunState.ENDED:
                continue
            if run.number > hello.seen:
                self._send(FrameKind.START, run.number, _work(run.acceptance))
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
        events: list[LogEntry] = []
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

    async def _append(self, events: Sequence[LogEntry]) -> bool:
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
            self._link.send(FrameKind.ACK, 0, payload_of({"frame": self.runs.last_frame}))

    def _check(self, frame: Frame, ahead: dict[int, Run]) -> LogEntry:
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
        if self._memory is not None:
            peak, kills = self._memory.peak_bytes(), self._memory.oom_kills()
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
