"""Runs and the events of their log (docs/protocol/runner.md)."""

from enum import StrEnum
from typing import Any

import msgspec

from roost.wire.reasons import Reason

SESSION_RUN = ""
"""The run id of a session's run 0: what was written between runs, or after a run's end."""


class RunState(StrEnum):
    """accepted → running ⇄ waiting → ended"""

    ACCEPTED = "accepted"
    """in the log, waiting for its turn"""
    RUNNING = "running"
    WAITING = "waiting"
    """its program asked for a line of input"""
    ENDED = "ended"


class RunStatus(StrEnum):
    """How a run ended."""

    OK = "ok"
    """the code ran to its end; exit code 0"""
    ERROR = "error"
    """an exception was not caught; exit code 1"""
    EXITED = "exited"
    """the code raised `SystemExit(n)`; exit code n"""
    INTERRUPTED = "interrupted"
    """`KeyboardInterrupt` ended it; exit code 130"""
    EXEC_TIMEOUT = "exec-timeout"
    """it ran longer than it was allowed to; exit code 124"""
    KERNEL_DIED = "kernel-died"
    """the interpreter died: exit code n of `os._exit(n)`, 128 + the signal otherwise"""
    SANDBOX_LOST = "sandbox-lost"
    """the sandbox went away under it; exit code 130"""


class EventKind(StrEnum):
    """What an event's `data` is; text for the first two, an object for the rest."""

    STDOUT = "stdout"
    STDERR = "stderr"
    STARTED = "started"
    """`{"state_lost": bool}`: whether variables of earlier runs are gone"""
    RESULT = "result"
    """`{"text": repr of the last expression's value, "mime": {type: content}}`; see `roost.wire.mime`"""
    DISPLAY = "display"
    """`{"mime": {type: content}, "display_id": str?, "update": true?}`; with `update` it takes the place of what was
    shown with that id"""
    ERROR = "error"
    """`{"name": exception class, "value": str, "traceback": [line, …], "frames": [{"file", "line", "name", "text"}]}`;
    the frames are the innermost of the traceback, outermost first"""
    PROMPT = "prompt"
    """`{"prompt": number, "text": str, "password": bool}`"""
    INPUT = "input"
    """`{"prompt": number, "text": str}` or `{"prompt": number, "eof": true}`; no text for a password"""
    STAGE = "stage"
    """`{"stage": "clean" or "build", "exit_code": int}`: a stage of a batch run has ended; its `exec` ends the run"""
    GAP = "gap"
    """`{"first": seq, "last": seq, "bytes": n}`: what had to be dropped"""
    END = "end"
    """a `RunEnd`"""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What a run used."""

    cpu_s: float = 0.0
    peak_bytes: int = 0
    """The highest memory use of the whole sandbox from its launch to the end of the run."""
    read_bytes: int | None = None
    """What the interpreter, and the children that it waited for, got from read calls: files, whether cached or not, and
    pipes. Not what came by memory mappings or `recv`. None where it was not measured: the interpreter died, or the
    system does not count."""
    written_bytes: int | None = None
    """The same for write calls; the run's own output counts."""
    wall_s: float = 0.0


class RunEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How and why a run ended; the data of its one `end` event."""

    status: RunStatus
    exit_code: int
    reason: Reason | None = None
    cost: Cost = Cost()


class Event(msgspec.Struct, frozen=True):
    """One entry of a run's log."""

    seq: int
    """Dense from 1 within its run."""
    kind: EventKind
    data: Any
    """`str` for stdout and stderr, an object of JSON values otherwise."""


class BatchStages(msgspec.Struct, frozen=True, kw_only=True):
    """The shell commands of a batch run, in their order; None skips a stage, `*` is the language's own way."""

    clean: str | None = None
    build: str | None = None
    exec: str | None = None


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of work for a session, to be done once."""

    run_id: str
    code: str
    mode: str = "query"
    """`query`: `code` in the interpreter that lives; `batch`: the stages as processes of their own."""
    echo: bool = True
    """Whether the last expression's value is a `result`."""
    batch: BatchStages | None = None
    """Only for `batch`."""
    timeout_s: float | None = None
    """How long it may run, from its start on; None is without limit."""


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent's log knows of one run."""

    run_id: str
    state: RunState
    mode: str | None = None
    """As its `RunSpec` has it; None where the log is gone."""
    created: bool = False
    """Only in the answer of `start`: whether this call made the run."""
    last_seq: int = 0
    prompt: int | None = None
    """The number of the prompt that waits for an answer."""
    accepted_at: float = 0.0
    """Unix time, seconds."""
    started_at: float | None = None
    ended_at: float | None = None
    end: RunEnd | None = None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive events of one run, and where the run stands after them."""

    events: list[Event]
    run: RunSummary
    """As of now; its `last_seq` may lie beyond the last event here."""


class InterruptOutcome(StrEnum):
    """What an interrupt did."""

    SENT = "sent"
    """the run was told to stop; nobody waited for it"""
    INTERRUPTED = "interrupted"
    """the run has ended of it"""
    ESCALATED = "escalated"
    """it did not heed the interrupt in time, so its interpreter was killed"""
    FINISHED = "finished"
    """the run had ended already, or came to its own end meanwhile"""
    IDLE = "idle"
    """nothing was running"""
    DEQUEUED = "dequeued"
    """the run had not begun and now never will"""
