"""The life of a run, decided without I/O.

```
accepted ──started──▶ running ──prompt──▶ waiting
    │                   ▲  │                │
    │                   └──│──── input ─────┘
    └──── end (dequeued, lost) ──▶ ended ◀──┘
```

Everything that comes out of a sandbox passes `admit`, which treats it as written by an attacker.
"""

import hashlib
import signal
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Any, Literal

import msgspec

from roost.runner.protocol import MAX_COMPLETION, MAX_COMPLETIONS, MAX_OUTPUT, STAGES
from roost.runner.protocol import Kind as FrameKind
from roost.wire.reasons import Reason
from roost.wire.runs import BatchStages, Cost, EventKind, RunEnd, RunSpec, RunState, RunStatus, RunSummary


class Kind(IntEnum):
    """Kinds of log records. Those of frames are the runner's own (docs/protocol/runner.md §2)."""

    STDOUT = FrameKind.STDOUT
    STDERR = FrameKind.STDERR
    STARTED = FrameKind.STARTED
    RESULT = FrameKind.RESULT
    DISPLAY = FrameKind.DISPLAY
    ERROR = FrameKind.ERROR
    PROMPT = FrameKind.PROMPT
    END = FrameKind.END
    STAGE = FrameKind.STAGE
    INPUT = 73
    """appended by the agent before the line is sent"""
    GAP = 199
    """stands for events of segments that are gone; never comes from a sandbox"""
    ACCEPTED = 200
    """a run's `Acceptance`; no event"""
    CURSOR = 201
    """how far the compatible poll has delivered; no event"""
    RESTARTED = 202
    """a new runner follows, whose frames are counted from 1; no event"""
    CHECKPOINT = 203
    """a `Checkpoint`, at the head of a segment: what the segments before it made of the runs; no event"""


EVENTS = {kind: EventKind(kind.name.lower()) for kind in Kind if kind < Kind.ACCEPTED}
TEXT = frozenset({Kind.STDOUT, Kind.STDERR})
BATCH = "batch"
TIMEOUT_EXIT_CODE = 124
"""As `timeout` of coreutils has it."""
KEPT = frozenset({Kind.STARTED, Kind.STAGE, Kind.END})
"""Events that stay in the log when their segment goes."""


class ProtocolBreachError(Exception):
    """What came out of the sandbox breaks the protocol."""


class Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    """The record that makes a run: appended before anything is sent."""

    run_id: str
    code: str
    mode: str
    echo: bool
    at: float
    batch: BatchStages | None = None
    timeout_s: float | None = None


class OpenRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has not ended, in a `Checkpoint`."""

    state: RunState
    prompts: int
    unanswered: dict[int, str | None]


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be known of the records before it, should they be gone."""

    last_frame: int
    state_lost: bool
    runs: dict[int, OpenRun]


_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Started(msgspec.Struct, frozen=True):
    state_lost: bool


class Result(msgspec.Struct, frozen=True):
    text: str
    mime: dict[str, str] = {}


class Display(msgspec.Struct, frozen=True):
    mime: dict[str, str]
    display_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None
    update: bool = False


class Place(msgspec.Struct, frozen=True):
    file: str
    line: _Count
    name: str
    text: str


class Error(msgspec.Struct, frozen=True):
    name: str
    value: str
    traceback: list[str]
    frames: list[Place] = []


class Prompt(msgspec.Struct, frozen=True):
    prompt: int
    text: str
    password: bool = False


class Stage(msgspec.Struct, frozen=True):
    stage: Literal["clean", "build"]
    exit_code: Annotated[int, msgspec.Meta(ge=-1, le=255)]


class Ended(msgspec.Struct, frozen=True):
    """The runner's word on how a run ended; why it died is for the cgroup to say."""

    status: RunStatus
    exit_code: int
    signal: int | None = None
    channel: Literal["closed", "broken"] | None = None
    """Why the runner itself killed its kernel."""
    cpu_s: float = 0.0
    read_bytes: _Count | None = None
    written_bytes: _Count | None = None
    dequeued: bool = False


class Completions(msgspec.Struct, frozen=True):
    """An answer to a question of ours; no record of the log."""

    id: int
    completions: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=MAX_COMPLETION)]], msgspec.Meta(max_length=MAX_COMPLETIONS)
    ]


_SHAPES: dict[Kind, Any] = {
    Kind.STARTED: Started,
    Kind.RESULT: Result,
    Kind.DISPLAY: Display,
    Kind.ERROR: Error,
    Kind.PROMPT: Prompt,
    Kind.STAGE: Stage,
    Kind.END: Ended,
}
_DECODERS = {kind: msgspec.json.Decoder(shape) for kind, shape in _SHAPES.items()}


class Run(msgspec.Struct):
    """One run as the log tells it; a session may have a million of them."""

    number: int
    """The agent's number of it, dense per session; 0 is the session itself."""
    acceptance: Acceptance
    state: RunState = RunState.ACCEPTED
    last_seq: int = 0
    prompts: int = 0
    """How many prompts it has had; the last one waits while the state is `waiting`."""
    stages: int = 0
    """How many stages of a batch run have ended; its last one ends the run."""
    started_at: float | None = None
    ended_at: float | None = None
    end: RunEnd | None = None
    cursor: int = 0
    digest: bytes = b""
    """Of what was asked for; the code itself is kept until the runner has it."""
    unanswered: dict[int, str | None] = {}
    """Answers by prompt number that the runner may not have seen, sent again on every connection."""

    def __post_init__(self) -> None:
        self.digest = self.digest or digest_of(self.acceptance)

    def is_same(self, spec: RunSpec) -> bool:
        """Whether a start of this run's id asks for the same work."""
        return self.digest == digest_of(spec)

    def copy(self) -> "Run":
        """A run to try events on before they are in the log."""
        return msgspec.structs.replace(self, unanswered=dict(self.unanswered))

    def summary(self, *, created: bool = False) -> RunSummary:
        return RunSummary(
            run_id=self.acceptance.run_id,
            state=self.state,
            mode=self.acceptance.mode,
            created=created,
            last_seq=self.last_seq,
            prompt=self.prompts if self.state is RunState.WAITING else None,
            accepted_at=self.acceptance.at,
            started_at=self.started_at,
            ended_at=self.ended_at,
            end=self.end,
        )


def digest_of(work: RunSpec | Acceptance) -> bytes:
    """What makes two starts ask for the same."""
    return hashlib.sha256(msgspec.json.encode((work.code, work.mode, work.batch))).digest()


def admit(run: Run, kind: Kind, payload: bytes) -> Any:
    """Check one frame of the sandbox against the run it claims to belong to; returns its decoded payload.

    Raises:
        ProtocolBreachError: the frame may not come now, or is not of its kind's shape.
    """
    if kind in TEXT:
        if not 1 <= len(payload) <= MAX_OUTPUT:
            raise ProtocolBreachError(f"{kind.name} of {len(payload)} bytes")
        decoded: Any = payload
    else:
        try:
            decoded = _DECODERS[kind].decode(payload)
        except (KeyError, msgspec.DecodeError, RecursionError) as error:
            raise ProtocolBreachError(f"malformed {kind.name}: {error}") from error
    if not _may_come(run, kind, decoded):
        raise ProtocolBreachError(f"{kind.name} while run {run.number} is {run.state}")
    return decoded


def _may_come(run: Run, kind: Kind, decoded: Any) -> bool:
    if run.number == 0:
        return kind in TEXT
    if kind is Kind.STAGE and not _is_due(run, decoded.stage):
        return False
    match run.state:
        case RunState.ACCEPTED:
            return kind is Kind.STARTED or (kind is Kind.END and decoded.dequeued)
        case RunState.RUNNING:
            if kind is Kind.PROMPT:
                return bool(decoded.prompt == run.prompts + 1)
            return kind is not Kind.STARTED
        case RunState.WAITING:
            return kind not in (Kind.STARTED, Kind.PROMPT)
        case RunState.ENDED:
            return False


def _is_due(run: Run, stage: str) -> bool:
    return run.acceptance.mode == BATCH and STAGES[run.stages : run.stages + 1] == (stage,)


LogEntry = tuple[Run, Kind, Any, bytes, int]
"""An event on its way into the log: run, kind, decoded data, payload, frame."""


def merge(events: Sequence[LogEntry]) -> list[LogEntry]:
    """The same events, with neighbouring pieces of one stream as one of at most `MAX_OUTPUT` bytes.

    A program that writes line by line would have an event for every few lines, each of which costs every reader.
    """
    merged: list[LogEntry] = []
    pieces: list[bytes] = []
    size = 0
    for event in events:
        run, kind, _, payload, frame = event
        size += len(payload)
        last = merged[-1] if merged else None
        if last is not None and kind in TEXT and last[0] is run and last[1] is kind and size <= MAX_OUTPUT:
            merged[-1] = (run, kind, None, b"", frame)
            pieces.append(payload)
            continue
        _join_last(merged, pieces)
        merged.append(event)
        pieces, size = [payload], len(payload)
    _join_last(merged, pieces)
    return merged


def _join_last(merged: list[LogEntry], pieces: list[bytes]) -> None:
    if len(pieces) > 1:
        run, kind, _, _, frame = merged[-1]
        payload = b"".join(pieces)
        merged[-1] = (run, kind, payload, payload, frame)


def apply(run: Run, kind: Kind, data: Any, at: float) -> None:
    """Let an event that is in the log change the run; the same when it happens and when the log is read again.

    Args:
        run: the run to change.
        kind: the record's kind.
        data: what `admit` returned, a `RunEnd` for an end, an object for an input.
        at: Unix time, seconds.
    """
    match kind:
        case Kind.STARTED:
            run.state, run.started_at = RunState.RUNNING, at
            _forget_code(run)
        case Kind.PROMPT:
            run.state, run.prompts = RunState.WAITING, data.prompt
            run.unanswered.clear()  # who asks again has had the answers before
        case Kind.INPUT:
            run.state = RunState.RUNNING
        case Kind.STAGE:
            run.state, run.stages = RunState.RUNNING, run.stages + 1
        case Kind.END:
            run.state, run.ended_at, run.end = RunState.ENDED, at, data
            _forget_code(run)
            run.unanswered.clear()
        case _:
            pass
    run.last_seq += 1


def _forget_code(run: Run) -> None:
    if run.acceptance.code:
        run.acceptance = msgspec.structs.replace(run.acceptance, code="")


def run_end(
    run: Run, ended: Ended, *, wall_s: float, peak_bytes: int, limit_bytes: int, oom_killed: bool, escalated: bool
) -> RunEnd:
    """How a run really ended: the runner's word, the cgroup's for the cause of a death, and ours where we killed.

    `memory-limit` comes from the cgroup's counter alone, and only for a SIGKILL: the counter may have counted a child
    of an interpreter that then exited by itself, be it with 137. A shell that executes a batch run's command exits
    with 137 when its child died so.

    Args:
        run: as it was before its end.
        ended: what the runner said.
        wall_s: seconds since it started.
        peak_bytes: the sandbox's highest memory use.
        limit_bytes: the sandbox's memory limit.
        oom_killed: whether the system has killed something in the sandbox since the run before.
        escalated: whether it was killed because it did not heed an interrupt.
    """
    cost = Cost(
        cpu_s=round(ended.cpu_s, 6),
        peak_bytes=peak_bytes,
        read_bytes=ended.read_bytes,
        written_bytes=ended.written_bytes,
        wall_s=round(wall_s, 6),
    )
    is_batch = run.acceptance.mode == BATCH
    full = _memory_limit(peak_bytes, limit_bytes, is_batch)
    if ended.status is not RunStatus.KERNEL_DIED:
        reason = None
        if is_batch and oom_killed and ended.exit_code == 128 + signal.SIGKILL:
            reason = full
        elif ended.signal is not None and ended.status is RunStatus.EXITED:
            reason = Reason(code="command-signalled", sentence=f"its command died of signal {ended.signal}")
        return RunEnd(status=ended.status, exit_code=ended.exit_code, reason=reason, cost=cost)
    is_killed = ended.signal == signal.SIGKILL and ended.channel is None
    if is_killed and oom_killed:
        return RunEnd(status=ended.status, exit_code=ended.exit_code, reason=full, cost=cost)
    limit_s = run.acceptance.timeout_s
    if is_killed and limit_s is not None and wall_s >= limit_s:
        reason = _too_long(limit_s, wall_s, is_batch)
        return RunEnd(status=RunStatus.EXEC_TIMEOUT, exit_code=TIMEOUT_EXIT_CODE, reason=reason, cost=cost)
    reason = _why_died(ended, is_batch, escalated and is_killed)
    return RunEnd(status=ended.status, exit_code=ended.exit_code, reason=reason, cost=cost)


def _lost(is_batch: bool) -> str:
    return "its processes were ended" if is_batch else "the session's variables are lost, its files are kept"


def _too_long(limit_s: float, wall_s: float, is_batch: bool) -> Reason:
    return Reason(
        code="exec-timeout",
        sentence=f"it ran longer than {limit_s:g} seconds, which it was allowed to; {_lost(is_batch)}",
        hint="run it in smaller steps, or with a longer limit",
        limit=round(limit_s * 1000),
        peak=round(wall_s * 1000),
        unit="milliseconds",
    )


def _memory_limit(peak_bytes: int, limit_bytes: int, is_batch: bool) -> Reason:
    return Reason(
        code="memory-limit",
        sentence=f"the session reached its memory limit of {limit_bytes} bytes; {_lost(is_batch)}",
        hint="create the session with more memory",
        limit=limit_bytes,
        peak=peak_bytes,
        unit="bytes",
    )


def _why_died(ended: Ended, is_batch: bool, escalated: bool) -> Reason:
    lost = _lost(is_batch)
    if escalated:
        return Reason(code="interrupt-escalated", sentence=f"it did not heed the interrupt, so it was killed; {lost}")
    if ended.channel is not None:
        what = "closed" if ended.channel == "closed" else "wrote to"
        return Reason(
            code=f"channel-{ended.channel}",
            sentence=f"the interpreter {what} its channel to the runner, which ended it; {lost}",
            hint="close, write to and replace only descriptors that your code has opened",
        )
    if ended.signal is not None:
        return Reason(code="kernel-signalled", sentence=f"the interpreter died of signal {ended.signal}; {lost}")
    return Reason(code="kernel-exited", sentence=f"the interpreter exited with {ended.exit_code}; {lost}")


def lost_end(reason: Reason) -> RunEnd:
    """The end of a run whose sandbox went away; it is never repeated."""
    return RunEnd(status=RunStatus.SANDBOX_LOST, exit_code=130, reason=reason)
