"""A session as the control plane knows it, and its life as a table of transitions."""

import re
from typing import Any

import msgspec

from roost.wire.errors import Conflict
from roost.wire.reasons import Reason
from roost.wire.runs import RunEnd, RunStatus
from roost.wire.sandboxes import Interpreter, Isolation, Limits, Rung
from roost.wire.sessions import SessionResult, SessionState, SessionType
from roost.wire.sessions import SessionState as S

TRANSITIONS: dict[S, frozenset[S]] = {
    S.PENDING: frozenset({S.SCHEDULED, S.CANCELLED}),
    # A session whose node is lost while it is still prepared goes back to the queue.
    S.SCHEDULED: frozenset({S.PREPARING, S.PENDING, S.CANCELLED, S.TERMINATED}),
    S.PREPARING: frozenset({S.RUNNING, S.PENDING, S.CANCELLED, S.TERMINATED}),
    S.RUNNING: frozenset({S.RESTARTING, S.TERMINATING, S.TERMINATED, S.ERROR}),
    S.RESTARTING: frozenset({S.RUNNING, S.TERMINATING, S.TERMINATED, S.ERROR}),
    S.TERMINATING: frozenset({S.TERMINATED, S.ERROR}),
    S.ERROR: frozenset({S.TERMINATED}),
    S.TERMINATED: frozenset(),
    S.CANCELLED: frozenset(),
}

BEING_PREPARED = (S.PENDING, S.SCHEDULED, S.PREPARING, S.RESTARTING)
"""The states before a session runs, or runs again; whoever waits for it waits while it is in one of these."""


NEEDS_FORCE = (S.SCHEDULED, S.PREPARING, S.ERROR)
"""The states in which a session is ended by force alone (spec/rest-sessions.md §8.2)."""


class SessionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, checked and completed."""

    type: SessionType = SessionType.INTERACTIVE
    startup_command: str | None = None
    """What a batch session runs, a line for the shell."""
    starts_at: float | None = None
    """Before this instant, Unix time, a batch session is not started."""
    bootstrap_script: str | None = None
    """What the shell runs in a new sandbox before the session is usable."""
    callback_url: str | None = None
    """What hears of the session's life."""
    architecture: str = ""
    """Of its image; empty in what earlier versions wrote."""
    interpreter: Interpreter
    environment: str | None = None
    """The digest of the packages that the image had when the session was made."""
    slots: dict[str, float]
    """Amounts by slot name: `cpu` in cores, `mem` in bytes."""
    named: frozenset[str] = frozenset()
    """The slots that the request named: these must be enforced."""
    environ: dict[str, str] = {}
    """What the user set; the session's own variables are added at launch."""
    tag: str | None = None
    resource_opts: dict[str, Any] = {}
    exec_timeout_s: float | None = None
    """How long each of its runs may take; one that takes longer ends the session too."""
    runtime: str | None = None
    min_rung: Rung = Rung.PROCESS
    node_id: str | None = None
    """The only node that it may be placed on; None leaves that to the scheduler."""

    def limits(self) -> Limits:
        return Limits(cpu=self.slots["cpu"], mem_bytes=int(self.slots["mem"]), named=self.named)


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """One session, as it is written down."""

    id: str
    access_key: str
    """The owner's."""
    group_id: str
    name: str
    image: str
    """The canonical reference."""
    state: SessionState
    version: int = 1
    """Grows with every change; a change names the version that it read."""
    spec: SessionSpec
    node_id: str | None = None
    reason: Reason | None = None
    """Why it is in this state, where there is more to say than the state's name."""
    status_data: dict[str, Any] = {}
    """spec/sessions-lifecycle.md §3"""
    result: SessionResult = SessionResult.UNDEFINED
    restarts: int = 0
    """How often it was given a new sandbox; a batch session runs its command once for each."""
    isolation: Isolation | None = None
    """What the sandbox really got; None before it runs."""
    created_at: float
    """Unix time, seconds, as the others."""
    status_changed: float = 0.0
    """When it came into its state."""
    started_at: float | None = None
    ended_at: float | None = None


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a session's history."""

    at: float
    code: str
    """Past tense, kebab-case: `session-enqueued`, `session-started`."""
    sentence: str
    hint: str | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch session came to, and why in a sentence."""

    result: SessionResult
    sentence: str
    exit_code: int | None = None
    """The command's, where it ended by itself."""

    def happening(self, at: float) -> Happening:
        """The entry of the session's history that tells of it."""
        return Happening(at=at, code=f"session-{self.result.lower()}", sentence=self.sentence)


BOOTSTRAP = "bootstrap"
"""The run id of a session's bootstrap script."""

JOB = "batch-job"
"""The run id of a batch session's command (spec/sessions-lifecycle.md §5)."""

_JOB_ID = re.compile(rf"{JOB}(-\d+)?", re.ASCII)


def job_id(session: Session) -> str:
    """The run id of a batch session's command in its present sandbox; another one after each restart."""
    return f"{JOB}-{session.restarts + 1}" if session.restarts else JOB


def is_kept_for_job(session: Session, run_id: str) -> bool:
    """Whether nobody but the server may start a run of this id."""
    return session.spec.type is SessionType.BATCH and _JOB_ID.fullmatch(run_id) is not None


def outcome_of(end: RunEnd) -> Outcome:
    """What a batch session's command came to."""
    if end.status is RunStatus.OK and end.exit_code == 0:
        return Outcome(result=SessionResult.SUCCESS, sentence="its command ended with exit code 0", exit_code=0)
    why = f": {end.reason.sentence}" if end.reason is not None else ""
    sentence = f"its command ended with exit code {end.exit_code} ({end.status}){why}"
    return Outcome(result=SessionResult.FAILURE, sentence=sentence, exit_code=end.exit_code)


def bootstrap_failure(end: RunEnd) -> Reason | None:
    """What the owner of a running session has to know of its bootstrap script; None where it succeeded."""
    if end.status is RunStatus.OK and end.exit_code == 0:
        return None
    why = f": {end.reason.sentence}" if end.reason is not None else ""
    return Reason(
        code="bootstrap-failed",
        sentence=f"its bootstrap script ended with exit code {end.exit_code} ({end.status}){why}; it runs all the same",
        hint="the session's logs have what the script wrote",
    )


def is_undecided(session: Session) -> bool:
    """Whether it is a batch session of which nobody has written down what it came to."""
    return session.spec.type is SessionType.BATCH and session.result is SessionResult.UNDEFINED


def closing_data(session: Session, status: str, exit_code: int | None = None) -> dict[str, Any]:
    """The `status_data` of a session that ends (spec/sessions-lifecycle.md §3).

    Args:
        status: `terminating` or `terminated`.
        exit_code: of what ended; None takes that of the session's command, where it has ended.
    """
    if exit_code is None:
        exit_code = session.status_data.get("kernel", {}).get("exit_code")
    return {"kernel": {"exit_code": exit_code}, "session": {"status": status}}


def check_transition(old: SessionState, new: SessionState) -> None:
    """Refuse a step that the table does not have.

    Raises:
        Conflict: there is no such arrow.
    """
    if new not in TRANSITIONS[old]:
        raise Conflict(f"a session cannot go from {old} to {new}")


def session_environ(session: Session) -> dict[str, str]:
    """What a session's processes find in their environment: what its user set, overridden by what it is.

    The names are those of spec/sessions-lifecycle.md §8.
    """
    own = {
        "SESSION_ID": session.id,
        "SESSION_NAME": session.name,
        "KERNEL_ID": session.id,
        "KERNEL_IMAGE": session.image,
        "ACCESS_KEY": session.access_key,
        "CLUSTER_SIZE": "1",
        "CLUSTER_REPLICAS": "main:1",
        "CLUSTER_HOSTS": "main1",
        "CLUSTER_ROLE": "main",
        "CLUSTER_IDX": "1",
        "CLUSTER_HOST": "main1",
    }
    return session.spec.environ | {f"BACKENDAI_{name}": value for name, value in own.items()}
