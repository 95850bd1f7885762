"""Brings sessions to nodes and ends them there; `placement.py` decides, this acts.

Nothing here is kept in memory alone: after a crash `open` compares what is written down with what the nodes
have, and completes or undoes what was under way.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from roost.engines.base import Bundle, Engine
from roost.server.domain.sessions import (
    NEEDS_FORCE,
    Outcome,
    Session,
    bootstrap_failure,
    closing_data,
    is_undecided,
    session_environ,
)
from roost.server.events.base import EventBus
from roost.server.scheduler.jobs import outcome_in_log, run_bootstrap, run_job
from roost.server.scheduler.ledger import QUEUE, Ledger
from roost.server.scheduler.placement import (
    Checks,
    Dependency,
    Dismissal,
    Placement,
    Postponement,
    Refusal,
    Waiting,
    next_start,
    place_next,
)
from roost.wire.agent import Agent
from roost.wire.errors import (
    AgentError,
    Conflict,
    Forbidden,
    NoCapacity,
    RoostError,
    SessionNotFound,
    SessionNotRunning,
)
from roost.wire.reasons import Reason
from roost.wire.runs import RunEnd, RunStatus, RunSummary
from roost.wire.sandboxes import SandboxEnded, SandboxInfo, SandboxSpec, SandboxState, SandboxStats
from roost.wire.sessions import SessionResult, SessionType
from roost.wire.sessions import SessionState as S

log = structlog.get_logger(__name__)

_LOOK_AGAIN_S = 10.0
"""The queue is woken by events; this bounds how long it waits where a look has failed."""

_RESERVING = (S.SCHEDULED, S.PREPARING, S.RUNNING, S.RESTARTING, S.TERMINATING, S.ERROR)


class Scheduler:
    """Owns every task that moves a session: one that empties the queue, one for each session on its way."""

    def __init__(self, ledger: Ledger, engine: Engine, bus: EventBus) -> None:
        self._ledger = ledger
        self._engine = engine
        self._bus = bus
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ending: dict[str, asyncio.Task[SandboxStats]] = {}
        self._restarting: dict[str, asyncio.Task[None]] = {}
        self._tries: dict[str, int] = {}
        self._gone_early: dict[str, SandboxEnded] = {}
        """Sandboxes that went away before their sessions were written down as running"""

    async def open(self) -> None:
        """Reconcile the sessions with the nodes, then begin to work on the queue."""
        await self._ledger.open()
        for node in await self._engine.nodes():
            await self._reconcile(node.node_id, await self._engine.agent(node.node_id))
            self._spawn(self._watch_node(node.node_id), f"watch-{node.node_id}")
        self._spawn(self._work_on_queue(), "queue")

    async def aclose(self) -> None:
        """Stop moving sessions; those that run go on."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # From the queue to a running sandbox

    async def has_node(self, node_id: str) -> bool:
        """Whether sessions can be placed on it."""
        return any(node.node_id == node_id for node in await self._engine.nodes())

    async def _work_on_queue(self) -> None:
        async with self._bus.subscribe(QUEUE) as changes:
            while True:
                next_at = math.inf
                try:
                    next_at = await self._place_all()
                except Exception:  # one bad look must not stop the queue for good
                    log.exception("queue.failed")
                await changes.wait(min(_LOOK_AGAIN_S, next_at - time.time()))

    async def _place_all(self) -> float:
        """Give each in the queue its node, in order, up to one for which there is no room; who waits is told why.

        Returns:
            When, in Unix time, the next of them may start that may not yet.
        """
        pending = await self._ledger.queue()
        now = time.time()
        waiting = [_waiting(session, dependencies) for session, dependencies in pending]
        for index, (session, _) in enumerate(pending):
            decision = place_next(waiting[index:], await self._engine.nodes(), now)
            with contextlib.suppress(Conflict):  # it was cancelled meanwhile
                match decision:
                    case Postponement(reason=reason, checks=checks):
                        if session.reason != reason:
                            await self._refuse(session, reason, checks)
                    case Dismissal(reason=reason):
                        await self.end(session, reason)
                    case Refusal(reason=reason, checks=checks):
                        await self._refuse(session, reason, checks)
                        await self._tell_those_behind([behind for behind, _ in pending[index + 1 :]])
                        break
                    case Placement(bundle=bundle) if not await self._prepare(session, bundle):
                        break
        return next_start(waiting, now) or math.inf

    async def _tell_those_behind(self, sessions: Sequence[Session]) -> None:
        """Give a reason to those in the queue who have none yet; the same to all, so that it is written once."""
        for session in sessions:
            if session.reason is None:
                with contextlib.suppress(Conflict):  # it was cancelled meanwhile
                    await self._refuse(session, _BEHIND, Checks())

    async def _refuse(self, session: Session, reason: Reason, checks: Checks) -> None:
        tries = self._tries[session.id] = self._tries.get(session.id, 0) + 1
        scheduler = {
            "retries": tries,
            "last_try": datetime.now(UTC).isoformat(),
            "failed_predicates": [{"name": name, "msg": sentence} for name, sentence in checks.failed.items()],
            "passed_predicates": [{"name": name} for name in checks.passed],
            "msg": reason.sentence,
        }
        await self._ledger.explain(session, reason, {"scheduler": scheduler})

    async def _prepare(self, session: Session, bundle: Bundle) -> bool:
        """Reserve and begin to launch; False where the engine has no room after all."""
        try:
            await self._engine.reserve(session.id, [bundle])
        except NoCapacity as error:
            await self._refuse(session, Reason(code="no-available-instances", sentence=error.message), Checks())
            return False
        try:
            session = await self._ledger.move(
                session,
                S.SCHEDULED,
                S.PREPARING,
                happening=("session-preparing", f"its sandbox is being launched on node {bundle.node_id}"),
                node_id=bundle.node_id,
                status_data={},
            )
        except BaseException:
            await self._engine.release(session.id)
            raise
        self._tries.pop(session.id, None)
        self._spawn(self._launch(session), f"launch-{session.id}")
        return True

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
        await self._on_running(running)

    async def _bootstrap(self, agent: Agent, session: Session) -> Reason | None:
        """Run the session's bootstrap script, where it has one; what its owner has to know of how it ended."""
        if session.spec.bootstrap_script is None:
            return None
        return bootstrap_failure(await run_bootstrap(agent, session))

    async def _on_running(self, session: Session) -> None:
        if session.id in self._gone_early:
            await self._on_ended(self._gone_early.pop(session.id))
        elif session.spec.type is SessionType.BATCH:
            self._spawn(self._do_job(session), f"job-{session.id}")

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
            self._spawn(self._end_for_time(session_id, end), f"exec-timeout-{session_id}")

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
        await asyncio.shield(self._restarting.get(session.id) or self._begin_restart(session))

    def _begin_restart(self, session: Session) -> asyncio.Task[None]:
        task = self._restarting[session.id] = self._spawn(self._restart(session), f"restart-{session.id}")
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
        await self._on_running(session)

    async def _on_gone_at_restart(self, session: Session) -> None:
        """The sandbox had gone away by itself, and its home with it."""
        ended = self._gone_early.pop(session.id, None)
        reason = ended.reason if ended is not None else _GONE_AT_RESTART
        await self._terminated(session, reason, ended.exit_code if ended is not None else None)
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
        return await asyncio.shield(self._ending.get(session.id) or self._begin_end(session, reason))

    def _begin_end(self, session: Session, reason: Reason) -> asyncio.Task[SandboxStats]:
        task = self._ending[session.id] = self._spawn(self._end(session, reason), f"end-{session.id}")
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
            session = await self._terminated(session, reason)
        try:
            stats = await (await self._agent(session)).destroy(session.id)
        except (RoostError, OSError) as error:
            message = error.message if isinstance(error, RoostError) else str(error)
            if session.state is S.TERMINATING:
                await self._to_error(session, f"its node could not end it: {message}", error)
            raise AgentError(message) from error
        await self._engine.release(session.id)
        if session.state is not S.TERMINATED:
            await self._terminated(session, reason)
        return stats

    async def _to_error(self, session: Session, sentence: str, error: Exception) -> None:
        await self._ledger.move(
            session,
            S.ERROR,
            happening=("session-error", sentence),
            reason=Reason(code="agent-error", sentence=sentence, hint="end it by force"),
            status_data={"error": _error_data(session, error, str(error))},
        )

    async def _terminated(self, session: Session, reason: Reason, exit_code: int | None = None) -> Session:
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

    async def _watch_node(self, node_id: str) -> None:
        """Hear of sandboxes that went away by themselves."""
        agent = await self._engine.agent(node_id)
        async for ended in agent.ended():
            try:
                await self._on_ended(ended)
            except RoostError as error:
                log.warning("session.end_not_written", session_id=ended.session_id, error=error.message)

    async def _on_ended(self, ended: SandboxEnded) -> None:
        session = await self._ledger.get(ended.session_id)
        if session.state in (S.SCHEDULED, S.PREPARING, S.RESTARTING):
            self._gone_early[session.id] = ended
        elif session.state is S.RUNNING:
            await self._terminated(session, ended.reason, ended.exit_code)
            await self._engine.release(session.id)

    # Recovery

    async def _reconcile(self, node_id: str, agent: Agent) -> None:
        """Known and alive, known and gone, unknown: compare what is written down with what the node has."""
        alive = {info.session_id: info for info in await agent.sandboxes()}
        lost = {ended.session_id: ended.reason for ended in await agent.lost()}
        for session in await self._ledger.in_states(*_RESERVING):
            if session.node_id != node_id:
                continue
            info = alive.pop(session.id, None)
            if session.state is S.TERMINATING:
                self._begin_end(session, session.reason or _ENDED_BEFORE)
            elif session.state is S.RESTARTING:
                await self._engine.reserve(session.id, [Bundle(node_id=node_id, slots=session.spec.slots)])
                await self._recover_restart(session, info)
            elif info is None and session.state is not S.ERROR:
                await self._recover_lost(session, lost.get(session.id, _UNKNOWN_END))
            else:
                await self._engine.reserve(session.id, [Bundle(node_id=node_id, slots=session.spec.slots)])
                if session.state in (S.SCHEDULED, S.PREPARING):
                    self._spawn(self._launch(session), f"launch-{session.id}")  # answers with the sandbox there is
                elif session.state is S.RUNNING and info is not None and info.state is SandboxState.RESTARTING:
                    self._begin_restart(session)  # a power failure took the newer row
                elif session.state is S.RUNNING:
                    await self._on_running(session)
        for session_id in alive:
            log.warning("sandbox.unknown", session_id=session_id)
            await agent.destroy(session_id)

    async def _recover_restart(self, session: Session, info: SandboxInfo | None) -> None:
        if info is None or info.state is not SandboxState.RUNNING:
            self._begin_restart(session)
            return
        happening = ("session-restarted", "the server stopped while it was restarted; it runs")
        session = await self._ledger.move(session, S.RUNNING, happening=happening, isolation=info.isolation)
        await self._on_running(session)

    async def _recover_lost(self, session: Session, reason: Reason) -> None:
        if session.state is S.RUNNING:
            await self._terminated(session, reason)
            return
        happening = ("session-requeued", "the server restarted while it was being prepared")
        await self._ledger.move(session, S.PENDING, happening=happening, node_id=None)

    async def _agent(self, session: Session) -> Agent:
        assert session.node_id is not None
        return await self._engine.agent(session.node_id)

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, Conflict):  # somebody was quicker, as those who wait for it are told
            log.info("task.overtaken", task=task.get_name(), reason=error.message)
        else:
            log.error("task.failed", task=task.get_name(), error=repr(error))


_BEHIND = Reason(
    code="no-available-instances",
    sentence="there is no room for the first in the queue, and it waits behind it",
    hint="end a session",
)
_TASK_FINISHED = Reason(code="task-finished", sentence="its command has ended")
_UNKNOWN_END = Reason(code="self-terminated", sentence="its sandbox was gone when the server came back")
_GONE_AT_RESTART = Reason(code="self-terminated", sentence="its sandbox was gone when it was to be restarted")
_ENDED_BEFORE = Reason(code="user-requested", sentence="it was being ended when the server stopped")


def _waiting(session: Session, dependencies: Sequence[Session]) -> Waiting:
    return Waiting(
        session_id=session.id,
        slots=session.spec.slots,
        starts_at=session.spec.starts_at,
        node_id=session.spec.node_id,
        dependencies=tuple(Dependency(name=one.name, state=one.state, result=one.result) for one in dependencies),
    )


def _error_data(session: Session, error: Exception, message: str) -> dict[str, Any]:
    name = type(error).__name__
    return {"src": "agent", "agent_id": session.node_id, "name": name, "repr": f"{name}({message!r})"}


def _plain(reason: Reason) -> Any:
    return msgspec.to_builtins(reason)


def _now() -> float:
    return datetime.now(UTC).timestamp()
