"""Brings the sessions of the queue to nodes; `placement.py` decides, this acts, and `lives.py` goes on from there."""

import contextlib
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from roost.engines.base import Bundle, Engine
from roost.server.domain.sessions import Session
from roost.server.events.base import EventBus
from roost.server.scheduler.ledger import QUEUE, Ledger
from roost.server.scheduler.lives import Lives
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
from roost.server.scheduler.reconciliation import reconcile
from roost.server.scheduler.tasks import Tasks
from roost.wire.errors import Conflict, NoCapacity, RoostError
from roost.wire.reasons import Reason
from roost.wire.sessions import SessionState as S

log = structlog.get_logger(__name__)

_LOOK_AGAIN_S = 10.0
"""The queue is woken by events; this bounds how long it waits where a look has failed."""


class Scheduler:
    """Works on the queue, and hears what the nodes have to tell of their sandboxes."""

    def __init__(self, ledger: Ledger, engine: Engine, bus: EventBus, lives: Lives) -> None:
        self._ledger = ledger
        self._engine = engine
        self._bus = bus
        self._lives = lives
        self._tasks = Tasks()
        self._tries: dict[str, int] = {}

    async def open(self) -> None:
        """Reconcile the sessions with the nodes, then begin to work on the queue."""
        await self._ledger.open()
        for node in await self._engine.nodes():
            await reconcile(node.node_id, self._ledger, self._engine, self._lives)
            self._tasks.spawn(self._watch_node(node.node_id), f"watch-{node.node_id}")
        self._tasks.spawn(self._work_on_queue(), "queue")

    async def aclose(self) -> None:
        """Stop bringing sessions to nodes."""
        await self._tasks.aclose()

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
                        await self._lives.end(session, reason)
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
        self._lives.begin_launch(session)
        return True

    async def _watch_node(self, node_id: str) -> None:
        """Hear of sandboxes that went away by themselves."""
        agent = await self._engine.agent(node_id)
        async for ended in agent.ended():
            try:
                await self._lives.on_ended(ended)
            except RoostError as error:
                log.warning("session.end_not_written", session_id=ended.session_id, error=error.message)


_BEHIND = Reason(
    code="no-available-instances",
    sentence="there is no room for the first in the queue, and it waits behind it",
    hint="end a session",
)


def _waiting(session: Session, dependencies: Sequence[Session]) -> Waiting:
    return Waiting(
        session_id=session.id,
        slots=session.spec.slots,
        starts_at=session.spec.starts_at,
        node_id=session.spec.node_id,
        dependencies=tuple(Dependency(name=one.name, state=one.state, result=one.result) for one in dependencies),
    )
