"""The runs that the server itself starts in a session, and what they come to.

Nothing is kept here: a run is named by its session alone, `Agent.start` answers the same run for the same name, and
its end is in the node's log. So whatever crashes, the next server asks again and no command runs twice.
"""

import itertools

from roost.server.domain.sessions import BOOTSTRAP, Outcome, Session, job_id, outcome_of
from roost.wire.agent import Agent
from roost.wire.errors import RoostError, RunNotFound, SandboxLost, SessionNotFound, SessionNotRunning
from roost.wire.runs import BatchStages, RunEnd, RunSpec, RunStatus
from roost.wire.sessions import SessionResult

BOOTSTRAP_S = 3600.0
"""How long a bootstrap script may run."""

_SCRIPT = "bootstrap.sh"
_LOOK_AGAIN_S = 600.0
_BEHIND_ALL = 1 << 62
"""Read after this event, a run answers when it ends, and carries no output."""


async def run_bootstrap(agent: Agent, session: Session) -> RunEnd:
    """Run a session's bootstrap script once in its sandbox, or find the run that there is; answers with its end.

    Raises:
        SandboxLost: the sandbox went away under it.
    """
    assert session.spec.bootstrap_script is not None
    run_id, is_known = await _bootstrap_id(agent, session.id)
    if not is_known:  # one that runs may have changed its own file
        await agent.files(session.id).write(_SCRIPT, session.spec.bootstrap_script.encode())
    command = BatchStages(exec=f"/bin/sh {_SCRIPT}")
    await agent.start(session.id, RunSpec(run_id=run_id, code="", mode="batch", batch=command, timeout_s=BOOTSTRAP_S))
    end = await _end_of(agent, session.id, run_id)
    if end.status is RunStatus.SANDBOX_LOST:
        raise SandboxLost("the sandbox went away while the bootstrap script ran")
    return end


async def _bootstrap_id(agent: Agent, session_id: str) -> tuple[str, bool]:
    """The id of the script's run in this sandbox, and whether there is one; those of sandboxes before it were lost."""
    for number in itertools.count(1):
        run_id = BOOTSTRAP if number == 1 else f"{BOOTSTRAP}-{number}"
        try:
            page = await agent.read(session_id, run_id, after=_BEHIND_ALL)
        except RunNotFound:
            return run_id, False
        if page.run.end is None or page.run.end.status is not RunStatus.SANDBOX_LOST:
            return run_id, True
    raise AssertionError("numbers do not end")


async def run_job(agent: Agent, session: Session) -> Outcome | None:
    """Run a batch session's command, or find the run that there is, and follow it to its end.

    Returns:
        What it came to; None where the sandbox went away under it, of which the node tells.
    """
    command = BatchStages(exec=session.spec.startup_command)
    limit_s = session.spec.exec_timeout_s
    run = RunSpec(run_id=job_id(session), code="", mode="batch", batch=command, timeout_s=limit_s)
    try:
        await agent.start(session.id, run)
        end = await _end_of(agent, session.id, run.run_id)
    except (SessionNotRunning, SessionNotFound):
        return None
    except RoostError as error:
        return _failure(f"its command could not be run: {error.message}")
    return outcome_of(end) if end.status is not RunStatus.SANDBOX_LOST else None


async def outcome_in_log(agent: Agent, session: Session, otherwise: str) -> Outcome:
    """What a batch session's command has come to; a failure for the reason given where it has not ended by itself."""
    try:
        page = await agent.read(session.id, job_id(session), after=_BEHIND_ALL)
    except (SessionNotFound, RunNotFound):
        return _failure(f"its command had not begun: {otherwise}")
    end = page.run.end
    if end is None or end.status is RunStatus.SANDBOX_LOST:
        return _failure(f"its command had not ended: {otherwise}")
    return outcome_of(end)


async def _end_of(agent: Agent, session_id: str, run_id: str) -> RunEnd:
    while True:
        page = await agent.read(session_id, run_id, after=_BEHIND_ALL, wait_s=_LOOK_AGAIN_S)
        if page.run.end is not None:
            return page.run.end


def _failure(sentence: str) -> Outcome:
    return Outcome(result=SessionResult.FAILURE, sentence=sentence)
