"""Sessions as they are written down: each change is one guarded write, told on the bus after its commit."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from roost.server.domain.sessions import Happening, Outcome, Session
from roost.server.domain.times import iso
from roost.server.events.base import EventBus
from roost.server.store import idempotency
from roost.server.store import sessions as rows
from roost.server.store.base import Store
from roost.server.store.idempotency import Once
from roost.wire.errors import AmbiguousSession, SessionNotFound
from roost.wire.reasons import Reason
from roost.wire.sessions import SessionState

QUEUE = "queue"
"""The topic of everything that may let a waiting session start."""


WEBHOOKS = "webhooks"
"""The topic of the outbox."""


def topic_of(session_id: str) -> str:
    """The topic of one session's changes."""
    return f"session:{session_id}"


class Ledger:
    """Reads and changes sessions.

    Live sessions are remembered as this process last wrote them, so that neither a run nor the steps of a launch cost
    a look-up in the store. What another process writes is seen by `find` and `in_states` alone.
    """

    def __init__(self, store: Store, bus: EventBus) -> None:
        self._store = store
        self._bus = bus
        self._live: dict[str, Session] = {}
        """Live sessions by id"""
        self._running: dict[tuple[str, str], Session] = {}
        """Running sessions by owner and by name and id"""

    async def open(self) -> None:
        """Remember what runs. Only here and in `move`, so that no late answer brings back an older state."""
        for session in await self.in_states(SessionState.RUNNING):
            self._remember(session)

    async def create(self, session: Session, dependencies: Sequence[str] = (), once: Once | None = None) -> None:
        """Write a new session, the ids of those that it depends on, and the request that it was made for.

        Raises:
            KeyTaken: a request of that key was done meanwhile.
            SessionAlreadyExists: its owner has a live session of this name.
        """
        happening = Happening(at=session.created_at, code="session-enqueued", sentence="the session was asked for")

        def work(connection: Any) -> None:
            rows.insert(connection, session, happening, dependencies)
            if once is not None:
                idempotency.remember(connection, session.access_key, once, session.id, True, session.created_at)

        await self._store.write(work)
        self._remember(session)
        await self._bus.publish(QUEUE)
        if session.spec.callback_url is not None:
            await self._bus.publish(WEBHOOKS)

    async def move(
        self,
        session: Session,
        *states: SessionState,
        happening: tuple[str, str],
        reason: Reason | None = None,
        outcome: Outcome | None = None,
        noted: Reason | None = None,
        **changes: Any,
    ) -> Session:
        """Bring a session through states into the last of them, in one write.

        Args:
            happening: code and sentence for the session's history.
            outcome: what the session has come to before that, where nobody has written it down.
            noted: what else its history has to tell of the step.

        Raises:
            Conflict: there is no such step, or the session has changed since it was read.
        """
        code, sentence = happening
        hint = reason.hint if reason is not None else None
        entry = Happening(at=time.time(), code=code, sentence=sentence, hint=hint)
        *through, last = states

        def work(connection: Any) -> Session:
            moved = session if outcome is None else rows.decide(connection, session, outcome, entry.at)
            for state in through:
                passing = Happening(at=entry.at, code=f"session-{state.lower()}", sentence=_PASSING[state])
                moved = rows.move(connection, moved, state, passing)
            if noted is not None:
                rows.record(connection, session.id, _entry(noted))
            return rows.move(connection, moved, last, entry, reason=reason, **changes)

        return await self._change(session, work)

    async def decide(self, session: Session, outcome: Outcome) -> Session:
        """Write down what a batch session came to, while it runs on.

        Raises:
            Conflict: the session has changed since it was read.
        """
        at = time.time()
        return await self._change(session, lambda c: rows.decide(c, session, outcome, at))

    async def explain(self, session: Session, reason: Reason, status_data: dict[str, Any]) -> Session:
        """Write down why a session stays in its state; once for each new reason."""
        is_new = session.reason != reason
        entry = _entry(reason)

        def work(connection: Any) -> Session:
            explained = rows.update(connection, session, reason=reason, status_data=status_data)
            if is_new:
                rows.record(connection, session.id, entry)
            return explained

        return await self._change(session, work)

    async def rename(self, session: Session, name: str) -> Session:
        """Give a session another name.

        Raises:
            SessionAlreadyExists: a live session of its owner has it.
            Conflict: the session has changed since it was read.
        """
        entry = Happening(at=time.time(), code="session-renamed", sentence=f"from {session.name} to {name}")

        def work(connection: Any) -> Session:
            renamed = rows.update(connection, session, name=name)
            rows.record(connection, session.id, entry)
            return renamed

        return await self._change(session, work)

    async def match(self, access_key: str, beginning: str) -> list[Session]:
        """At most ten of an owner's sessions, ended ones too, whose id or name is or begins with this."""
        return await self._store.read(lambda c: rows.matching(c, access_key, beginning, tuple(SessionState)))

    async def find(self, access_key: str, reference: str, *, dead_too: bool = False) -> Session:
        """The one session of an owner that a reference names (spec/rest-sessions.md §2).

        Args:
            dead_too: also the newest ended session, if no live one is meant.

        Raises:
            SessionNotFound: there is none.
            AmbiguousSession: it is the beginning of several.
        """
        known = self._running.get((access_key, reference))
        if known is not None:
            return known
        found = await self._store.read(lambda c: rows.matching(c, access_key, reference))
        if not found and dead_too:
            ended = (SessionState.TERMINATED, SessionState.CANCELLED)
            found = await self._store.read(lambda c: rows.matching(c, access_key, reference, ended))
            # Names of ended sessions may be used again and again; the last of them is meant.
            found = found[:1] if found and reference in (found[0].name, found[0].id) else found
        if not found:
            raise SessionNotFound(f"there is no session {reference!r}")
        if len(found) > 1:
            raise AmbiguousSession(
                f"{reference!r} is the beginning of {len(found)} sessions", data={"matches": _matches(found)}
            )
        return found[0]

    async def find_live_name(self, access_key: str, name: str) -> Session | None:
        """The live session of exactly this name."""
        return await self._store.read(lambda c: rows.live_named(c, access_key, name))

    async def get(self, session_id: str) -> Session:
        """A session by its id, live or not.

        Raises:
            SessionNotFound: there is none.
        """
        if session_id in self._live:
            return self._live[session_id]
        session = await self._store.read(lambda c: rows.get(c, session_id))
        if session is None:
            raise SessionNotFound(f"there is no session {session_id}")
        return session

    async def of_owner(self, access_key: str, states: list[SessionState]) -> list[Session]:
        """All of one owner's sessions in these states, newest first."""
        return await self._store.read(lambda c: rows.of_owner(c, access_key, states))

    async def in_states(self, *states: SessionState) -> list[Session]:
        """Everybody's sessions in these states, oldest first."""
        return await self._store.read(lambda c: rows.in_states(c, states))

    async def queue(self) -> list[tuple[Session, list[Session]]]:
        """Everybody's pending sessions, oldest first, each with those that it depends on."""
        return await self._store.read(rows.queue)

    async def dependencies(self, session_ids: Sequence[str]) -> dict[str, list[Session]]:
        """What each of some sessions depends on; those that depend on nothing are left out."""
        return await self._store.read(lambda c: rows.dependencies(c, session_ids))

    async def live_dependents(self, session_id: str) -> list[Session]:
        """Live sessions that depend on one, those before those that they depend on."""
        return await self._store.read(lambda c: rows.live_dependents(c, session_id))

    async def history(self, session_id: str) -> list[Happening]:
        """What happened to a session, oldest first."""
        return await self._store.read(lambda c: rows.history(c, session_id))

    async def _change(self, session: Session, work: Callable[[Any], Session]) -> Session:
        try:
            changed = await self._store.write(work)
        finally:
            self._forget(session)
        self._remember(changed)
        await self._bus.publish(topic_of(session.id))
        if not changed.state.is_live or changed.result is not session.result:
            await self._bus.publish(QUEUE)
        if session.spec.callback_url is not None:
            await self._bus.publish(WEBHOOKS)
        return changed

    def _remember(self, session: Session) -> None:
        if session.state.is_live:
            self._live[session.id] = session
        if session.state is SessionState.RUNNING:
            self._running[session.access_key, session.name] = session
            self._running[session.access_key, session.id] = session

    def _forget(self, session: Session) -> None:
        self._live.pop(session.id, None)
        self._running.pop((session.access_key, session.name), None)
        self._running.pop((session.access_key, session.id), None)


def _entry(reason: Reason) -> Happening:
    return Happening(at=time.time(), code=reason.code, sentence=reason.sentence, hint=reason.hint)


_PASSING = {
    SessionState.SCHEDULED: "a node has room for it",
    SessionState.TERMINATING: "it is being ended",
}


def _matches(found: list[Session]) -> list[dict[str, Any]]:
    return [
        {"id": one.id, "name": one.name, "status": one.state.value, "created_at": iso(one.created_at)} for one in found
    ]
