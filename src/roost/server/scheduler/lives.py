"""Lives of sessions: launches them on their nodes, restarts them and ends them.

Nothing here is kept in memory alone: what a crash leaves under way is completed or undone by `reconciliation.py`.
"""

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from roost.engines.base import Engine
from roost.server.domain.sessions import (
    NEEDS_FORCE,
    Outcome,
    Session,
    bootstrap_failure,
    closing_data,
    is_undecided,
    session_environ,
)
from roost.server.scheduler.jobs import outcome_in_log, run_bootstrap, run_job
from roost.server.scheduler.ledger import Ledger
from roost.server.scheduler.tasks import Tasks
from roost.wire.agent import Agent
from roost.wire.errors import AgentError, Conflict, Forbidden, RoostError, SessionNotFound, SessionNotRunning
from roost.wire.reasons import Reason
from roost.wire.runs import RunEnd, RunStatus, RunSummary
from roost.wire.sandboxes import SandboxEnded, SandboxInfo, SandboxSpec, SandboxStats
from roost.wire.sessions import SessionResult, SessionType
from roost.wire.sessions import SessionState as S

log = structlog.get_logger(__name__)


class Lives:
    """Owns every task that moves a session once it has its node, one for each on its way."""

    def __init__(self, ledger: Ledger, engine: Engine) -> None:
        self._ledger = ledger
        self._engine = engine
        self._tasks = Tasks()
        self._ending: dict[str, asyncio.Task[SandboxStats]] = {}
        self._restarting: dict[str, asyncio.Task[None]] = {}
        self._gone_early: dict[str, SandboxEnded] = {}
        """Sandboxes that went away before their sessions were written down as running"""

    async def aclose(self) -> None:
        """Stop moving sessions; those that run go on."""
        await self._tasks.aclose()

    async def has_node(self, node_id: str) -> bool:
        """Whether sessions can be placed on it."""
        return any(node.node_id == node_id for node in await self._engine.nodes())

    # From a node to a running sandbox

    def begin_launch(self, session: Session) -> None:
        """Launch the sandbox of a session that is being prepared, or find the one that there is."""
        self._tasks.spawn(self._launch(session), f"launch-{session.id}")

    async def _launch(self, session: Session) -> None:
        agent = await self._agent(session)
        spec = SandboxSpec(
            session_id=session.id,
            interpreter=session.spec.interpreter,
            environment=session.spec.environment,
            limits=session.spec.limits(),
            runtime=session.spec.runtime,
            min_rung=session.spec.min_rung,
            environ=session_environ(session),
        )
        try:
            info = await agent.launch(spec)
            trouble = await self._bootstrap(agent, session)
        except Exception as error:  # noqa: BLE001 - whatever it was, nobody may wait for this session for ever
            await self._give_up(session, agent, error)
            return
        happening = ("session-started", f"it runs under {info.runtime}, isolation rung {info.isolation.rung}")
        try:
            running = await self._ledger.move(
                session,
                S.RUNNING,
                happening=happening,
                reason=trouble,
                noted=trouble,
                isolation=info.isolation,
                started_at=info.launched_at,
                status_data={"bootstrap": _plain(trouble)} if trouble is not None else {},
            )
        except Conflict:  # it was ended by force while it was launched
            await agent.destroy(session.id)
            return
        await self.on_running(running)

    async def _bootstrap(self, agent: Agent, session: Session) -> Reason | None:
        """Run the session's bootstrap script, where it has one; what its owner has to know of how it ended."""
        if session.spec.bootstrap_script is None:
            return None
        return bootstrap_failure(await run_bootstrap(agent, session))

    async def on_running(self, session: Session) -> None:
        """Do what follows when a session runs: its command, or its end if its sandbox went away early."""
        if session.id in self._gone_early:
            await self.on_ended(self._gone_early.pop(session.id))
        elif session.spec.type is SessionType.BATCH:
            self._tasks.spawn(self._do_job(session), f"job-{session.id}")

    async def _give_up(self, session: Session, agent: Agent, error: Exception) -> None:
        message = error.message if isinstance(error, RoostError) else repr(error)
        hint = error.hint if isinstance(error, RoostError) else None
        log.warning("session.failed_to_start", session_id=session.id, error=message)
        self._gone_early.pop(session.id, None)
        try:
            await agent.destroy(session.id)  # a launch that failed left nothing, a script that could not run did
        except (RoostError, OSError) as failure:
            log.warning("sandbox.not_ended", session_id=session.id, error=str(failure))
        await self._engine.release(session.id)
        details = _error_data(session, error, message)
        with contextlib.suppress(Conflict):  # it was ended by force while it was launched
            await self._cancel(session, message, hint, details)

    async def _cancel(self, session: Session, message: str, hint: str | None, details: dict[str, Any]) -> None:
        await self._ledger.move(
            session,
            S.CANCELLED,
            happening=("session-cancelled", f"it failed to start: {message}"),
            reason=Reason(code="failed-to-start", sentence=message, hint=hint),
            status_data={"error": details},
            ended_at=_now(),
        )

    # Batch sessions

    async def _do_job(self, session: Session) -> None:
        """Run the command of a batch session, once however often this is called, and end the session."""
        outcome = await run_job(await self._agent(session), session)
        if outcome is None:
            return
        restarts = session.restarts
        while True:
            session = await self._ledger.get(session.id)
            if session.state is not S.RUNNING or session.restarts != restarts:
                return  # it was ended, or begun anew, meanwhile
            if not is_undecided(session):
                break
            with contextlib.suppress(Conflict):  # it was renamed, or one of the above
                await self._ledger.decide(session, outcome)
        await self.end(session, _TASK_FINISHED)

    def on_run_ended(self, session_id: str, run: RunSummary) -> None:
        """End a session one of whose runs took longer than the session allows."""
        end = run.end
        if end is not None and end.status is RunStatus.EXEC_TIMEOUT:
            self._tasks.spawn(self._end_for_time(session_id, end), f"exec-timeout-{session_id}")

    async def _end_for_time(self, session_id: str, end: RunEnd) -> None:
        session = await self._ledger.get(session_id)
        limit_s = session.spec.exec_timeout_s
        if limit_s is None or end.reason is None or end.reason.limit != round(limit_s * 1000):
            return  # the run had a limit of its own
        if session.spec.type is not SessionType.BATCH and session.state is S.RUNNING:
            await self.end(session, end.reason)

    async def _outcome(self, session: Session, reason: Reason) -> Outcome | None:
        """What a session that ends has come to, where that is not written down."""
        if not is_undecided(session) or session.state not in (S.RUNNING, S.RESTARTING, S.ERROR):
            return None
        return await outcome_in_log(await self._agent(session), session, reason.sentence)

    # Restarts

    async def restart(self, session: Session) -> None:
        """Give a running session a new sandbox in its home; once for all who ask at the same time.

        Raises:
            SessionNotRunning: it does not run, its sandbox was gone already, or it is a batch session that is done.
            Conflict: it was ended meanwhile.
            AgentError: its node could not do it; the session is in `ERROR` then.
        """
        if session.state is not S.RUNNING and session.id not in self._restarting:
            raise SessionNotRunning(f"session {session.name} is {session.state}")
        if session.result is not SessionResult.UNDEFINED:
            raise SessionNotRunning(f"session {session.name} has run its command and is about to end")
        await asyncio.shield(self._restarting.get(session.id) or self.begin_restart(session))

    def begin_restart(self, session: Session) -> asyncio.Task[None]:
        """Restart a session that runs, or go on with the restart of one that a server before this one began."""
        task = self._restarting[session.id] = self._tasks.spawn(self._restart(session), f"restart-{session.id}")
        task.add_done_callback(lambda _: self._restarting.pop(session.id, None))
        return task

    async def _restart(self, session: Session) -> None:
        if session.state is S.RUNNING:
            happening = ("session-restarting", "its owner asked for a new sandbox with the same files")
            session = await self._ledger.move(
                session, S.RESTARTING, happening=happening, restarts=session.restarts + 1, status_data={}
            )
        agent = await self._agent(session)
        try:
            info = await agent.restart(session.id)
        except (SessionNotFound, SessionNotRunning):
            await self._on_gone_at_restart(session)
        except Exception as error:  # noqa: BLE001 - whatever it was, nobody may wait for this session for ever
            await self._fail_restart(session, error)
        else:
            await self._restarted(session, agent, info)

    async def _restarted(self, session: Session, agent: Agent, info: SandboxInfo) -> None:
        happening = ("session-restarted", f"it runs anew under {info.runtime}, isolation rung {info.isolation.rung}")
        try:
            session = await self._ledger.move(session, S.RUNNING, happening=happening, isolation=info.isolation)
        except Conflict:  # it was ended while it was restarted
            self._gone_early.pop(session.id, None)
            await agent.destroy(session.id)
            raise
        await self.on_running(session)

    async def _on_gone_at_restart(self, session: Session) -> None:
        """The sandbox had gone away by itself, and its home with it."""
        ended = self._gone_early.pop(session.id, None)
        reason = ended.reason if ended is not None else _GONE_AT_RESTART
        await self.write_terminated(session, reason, ended.exit_code if ended is not None else None)
        await self._engine.release(session.id)
        raise SessionNotRunning(f"session {session.name} has ended: {reason.sentence}")

    async def _fail_restart(self, session: Session, error: Exception) -> None:
        message = error.message if isinstance(error, RoostError) else repr(error)
        self._gone_early.pop(session.id, None)
        await self._to_error(session, f"its node could not restart it: {message}", error)
        raise AgentError(message, hint="end it by force") from error

    # The ends

    async def end(self, session: Session, reason: Reason, *, forced: bool = False) -> SandboxStats:
        """End a session, whatever state it is in; once for all who ask at the same time.

        Returns:
            The counters of its sandbox, where it had one.

        Raises:
            Forbidden: it is being prepared, or is in error, and this is not forced.
            AgentError: its node could not end it; the session is in `ERROR` then.
        """
        while session.state is S.PENDING:
            try:
                happening = ("session-cancelled", reason.sentence)
                await self._ledger.move(session, S.CANCELLED, happening=happening, reason=reason, ended_at=_now())
                return SandboxStats()
            except Conflict:  # the queue was quicker: it said why the session waits, or gave it a node
                session = await self._ledger.get(session.id)
        if session.state in NEEDS_FORCE and not forced:
            raise Forbidden(f"session {session.name} is {session.state}", hint="wait, or force it with `forced`")
        return await asyncio.shield(self._ending.get(session.id) or self.begin_end(session, reason))

    def begin_end(self, session: Session, reason: Reason) -> asyncio.Task[SandboxStats]:
        """End a session that has a node, or go on with the end that a server before this one began."""
        task = self._ending[session.id] = self._tasks.spawn(self._end(session, reason), f"end-{session.id}")
        task.add_done_callback(lambda _: self._ending.pop(session.id, None))
        return task

    async def _end(self, session: Session, reason: Reason) -> SandboxStats:
        while session.state in (S.RUNNING, S.RESTARTING):
            happening = ("session-terminating", reason.sentence)
            outcome = await self._outcome(session, reason)
            exit_code = outcome.exit_code if outcome is not None else None
            try:
                session = await self._ledger.move(
                    session,
                    S.TERMINATING,
                    happening=happening,
                    reason=reason,
                    outcome=outcome,
                    status_data=closing_data(session, "terminating", exit_code),
                )
            except Conflict:  # a restart was quicker
                session = await self._ledger.get(session.id)
        if session.state in NEEDS_FORCE:
            # Written down first: its name is free at once, and a launch that is under way sees it and undoes itself.
            session = await self.write_terminated(session, reason)
        try:
            stats = await (await self._agent(session)).destroy(session.id)
        except (RoostError, OSError) as error:
            message = error.message if isinstance(error, RoostError) else str(error)
            if session.state is S.TERMINATING:
                await self._to_error(session, f"its node could not end it: {message}", error)
            raise AgentError(message) from error
        await self._engine.release(session.id)
        if session.state is not S.TERMINATED:
            await self.write_terminated(session, reason)
        return stats

    async def _to_error(self, session: Session, sentence: str, error: Exception) -> None:
        await self._ledger.move(
            session,
            S.ERROR,
            happening=("session-error", sentence),
            reason=Reason(code="agent-error", sentence=sentence, hint="end it by force"),
            status_data={"error": _error_data(session, error, str(error))},
        )

    async def write_terminated(self, session: Session, reason: Reason, exit_code: int | None = None) -> Session:
        """Write down that a session has ended, and what it came to."""
        outcome = await self._outcome(session, reason)
        if exit_code is None and outcome is not None:
            exit_code = outcome.exit_code
        return await self._ledger.move(
            session,
            S.TERMINATED,
            happening=("session-terminated", f"it has ended: {reason.sentence}"),
            reason=reason,
            outcome=outcome,
            status_data=closing_data(session, "terminated", exit_code),
            ended_at=_now(),
        )

    async def on_ended(self, ended: SandboxEnded) -> None:
        """Write down the end of a session whose sandbox went away by itself."""
        session = await self._ledger.get(ended.session_id)
        if session.state in (S.SCHEDULED, S.PREPARING, S.RESTARTING):
            self._gone_early[session.id] = ended
        elif session.state is S.RUNNING:
            await self.write_terminated(session, ended.reason, ended.exit_code)
            await self._engine.release(session.id)

    async def _agent(self, session: Session) -> Agent:
        assert session.node_id is not None
        return await self._engine.agent(session.node_id)


_TASK_FINISHED = Reason(code="task-finished", sentence="its command has ended")
_GONE_AT_RESTART = Reason(code="self-terminated", sentence="its sandbox was gone when it was to be restarted")


def _error_data(session: Session, error: Exception, message: str) -> dict[str, Any]:
    name = type(error).__name__
    return {"src": "agent", "agent_id": session.node_id, "name": name, "repr": f"{name}({message!r})"}


def _plain(reason: Reason) -> Any:
    return msgspec.to_builtins(reason)


def _now() -> float:
    return datetime.now(UTC).timestamp()
