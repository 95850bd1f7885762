"""The runs that the server itself starts in a session, and what they come to.

Nothing is kept here: a run is named by its session alone, `Agent.start` answers the same run for the same name, and
its end is in the node's log. So whatever crashes, the next server asks again and no command runs twice.
"""

from roost.server.domain.sessions import Outcome, Session, job_id, outcome_of
from roost.wire.agent import Agent
from roost.wire.errors import NotFound, RoostError, SessionNotRunning
from roost.wire.runs import BatchStages, RunEnd, RunSpec, RunStatus
from roost.wire.sessions import SessionResult

_LOOK_AGAIN_S = 600.0
_BEHIND_ALL = 1 << 62
"""Read after this event, a run answers when it ends, and carries no output."""


async def run_job(agent: Agent, session: Session) -> Outcome | None:
    """Run a batch session's command, or find the run that there is, and follow it to its end.

    Returns:
        What it came to; None where the sandbox went away under it, of which the node tells.
    """
    command = BatchStages(exec=session.spec.startup_command)
    run = RunSpec(run_id=job_id(session), code="", mode="batch", batch=command)
    try:
        await agent.start(session.id, run)
        end = await _end_of(agent, session.id, run.run_id)
    except (SessionNotRunning, NotFound):
        return None
    except RoostError as error:
        return _failure(f"its command could not be run: {error.message}")
    return outcome_of(end) if end.status is not RunStatus.SANDBOX_LOST else None


async def outcome_in_log(agent: Agent, session: Session, otherwise: str) -> Outcome:
    """What a batch session's command has come to; a failure for the reason given where it has not ended by itself."""
    try:
        page = await agent.read(session.id, job_id(session), after=_BEHIND_ALL)
    except NotFound:
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
