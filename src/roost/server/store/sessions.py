"""Rows of sessions and their history; each function is work for `Store.read` or `Store.write`."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from roost.server.domain.sessions import Happening, Outcome, Session, check_transition
from roost.server.domain.webhooks import EVENTS
from roost.server.store import webhooks
from roost.server.store.tables import session_dependencies, session_events, sessions
from roost.wire.errors import Conflict, SessionAlreadyExists
from roost.wire.reasons import Reason
from roost.wire.sessions import SessionState

LIVE_STATES = tuple(state for state in SessionState if state.is_live)


def insert(connection: sa.Connection, session: Session, happening: Happening, dependencies: Sequence[str] = ()) -> None:
    """Write a new session, the ids of what it depends on, and the first entry of its history.

    Raises:
        SessionAlreadyExists: its owner has a live session of this name.
    """
    try:
        connection.execute(sessions.insert().values(_to_row(session)))
    except sa.exc.IntegrityError as error:
        raise SessionAlreadyExists(f"a live session {session.name} exists") from error
    if dependencies:
        rows = [{"session_id": session.id, "depends_on": one} for one in dependencies]
        connection.execute(session_dependencies.insert(), rows)
    record(connection, session.id, happening)
    webhooks.enqueue(connection, session, EVENTS.get(session.state), happening.at)


def move(
    connection: sa.Connection,
    session: Session,
    state: SessionState,
    happening: Happening,
    *,
    reason: Reason | None = None,
    **changes: Any,
) -> Session:
    """Bring a session into another state, and write down why.

    Raises:
        Conflict: there is no such step, or the session has changed since it was read.
    """
    check_transition(session.state, state)
    moved = update(connection, session, state=state, reason=reason, status_changed=happening.at, **changes)
    record(connection, session.id, happening)
    webhooks.enqueue(connection, moved, EVENTS.get(state), happening.at)
    return moved


def decide(connection: sa.Connection, session: Session, outcome: Outcome, at: float) -> Session:
    """Write down what a batch session came to.

    Raises:
        Conflict: the session has changed since it was read.
    """
    status_data = {"kernel": {"exit_code": outcome.exit_code}} if outcome.exit_code is not None else {}
    decided = update(connection, session, result=outcome.result, status_data=status_data)
    record(connection, session.id, outcome.happening(at))
    webhooks.enqueue(connection, decided, EVENTS.get(outcome.result), at)
    return decided


def update(connection: sa.Connection, session: Session, **changes: Any) -> Session:
    """Change some of a session's fields.

    Raises:
        Conflict: it has changed since it was read.
        SessionAlreadyExists: its new name is taken.
    """
    changed = msgspec.structs.replace(session, version=session.version + 1, **changes)
    guard = (sessions.c.id == session.id, sessions.c.version == session.version, sessions.c.state == session.state)
    try:
        done = connection.execute(sessions.update().where(*guard).values(_to_row(changed)))
    except sa.exc.IntegrityError as error:
        raise SessionAlreadyExists(f"a live session {changed.name} exists") from error
    if done.rowcount != 1:
        raise Conflict(f"session {session.name} has changed meanwhile", hint="try again")
    return changed


def record(connection: sa.Connection, session_id: str, happening: Happening) -> None:
    row = {"session_id": session_id, **msgspec.structs.asdict(happening)}
    connection.execute(session_events.insert().values(row))


def get(connection: sa.Connection, session_id: str) -> Session | None:
    row = connection.execute(sa.select(sessions).where(sessions.c.id == session_id)).one_or_none()
    return _from_row(row) if row is not None else None


def matching(
    connection: sa.Connection, access_key: str, reference: str, states: Iterable[SessionState] = LIVE_STATES
) -> list[Session]:
    """Those of one owner that a reference names, newest first, at most ten.

    The first of these that names any decides: exact id, exact name, beginning of an id or a name.
    """
    own = (sessions.c.access_key == access_key, sessions.c.state.in_(list(states)))
    begins = sa.or_(
        sessions.c.id.startswith(reference.lower(), autoescape=True),
        # SQLite's LIKE does not tell cases apart; names do.
        sa.func.substr(sessions.c.name, 1, len(reference)) == reference,
    )
    for condition in (sessions.c.id == reference.lower(), sessions.c.name == reference, begins):
        query = sa.select(sessions).where(*own, condition).order_by(sessions.c.created_at.desc()).limit(10)
        if found := connection.execute(query).all():
            return [_from_row(row) for row in found]
    return []


def live_named(connection: sa.Connection, access_key: str, name: str) -> Session | None:
    """One owner's live session of exactly this name."""
    own = (sessions.c.access_key == access_key, sessions.c.name == name, sessions.c.state.in_(LIVE_STATES))
    row = connection.execute(sa.select(sessions).where(*own)).one_or_none()
    return _from_row(row) if row is not None else None


def of_owner(connection: sa.Connection, access_key: str, states: Sequence[SessionState]) -> list[Session]:
    """All of one owner's sessions in these states, newest first."""
    query = sa.select(sessions).where(sessions.c.access_key == access_key, sessions.c.state.in_(states))
    return [_from_row(row) for row in connection.execute(query.order_by(sessions.c.created_at.desc()))]


def in_states(connection: sa.Connection, states: Sequence[SessionState]) -> list[Session]:
    """Everybody's sessions in these states, oldest first."""
    query = sa.select(sessions).where(sessions.c.state.in_(states)).order_by(sessions.c.created_at, sessions.c.id)
    return [_from_row(row) for row in connection.execute(query)]


def queue(connection: sa.Connection) -> list[tuple[Session, list[Session]]]:
    """Everybody's pending sessions, oldest first, each with those that it depends on."""
    pending = in_states(connection, [SessionState.PENDING])
    mine = sa.select(sessions.c.id).where(sessions.c.state == SessionState.PENDING)
    found = _dependencies(connection, session_dependencies.c.session_id.in_(mine)) if pending else {}
    return [(session, found.get(session.id, [])) for session in pending]


def dependencies(connection: sa.Connection, session_ids: Sequence[str]) -> dict[str, list[Session]]:
    """What each of some sessions depends on, by name; those that depend on nothing are left out."""
    return _dependencies(connection, session_dependencies.c.session_id.in_(session_ids))


def live_dependents(connection: sa.Connection, session_id: str) -> list[Session]:
    """Live sessions that depend on one, those before those that they depend on."""
    query = (
        sa.select(sessions)
        .join(session_dependencies, session_dependencies.c.session_id == sessions.c.id)
        .where(sessions.c.state.in_(LIVE_STATES))
        .order_by(sessions.c.created_at)
    )
    found: dict[str, Session] = {}
    waiting = [session_id]
    while waiting:
        of_one = query.where(session_dependencies.c.depends_on == waiting.pop())
        for session in map(_from_row, connection.execute(of_one)):
            if session.id not in found:
                found[session.id] = session
                waiting.append(session.id)
    # Nothing depends on what was made after it.
    return sorted(found.values(), key=lambda session: session.created_at, reverse=True)


def _dependencies(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> dict[str, list[Session]]:
    query = (
        sa.select(session_dependencies.c.session_id.label("dependent"), sessions)
        .join(sessions, sessions.c.id == session_dependencies.c.depends_on)
        .where(condition)
        .order_by(sessions.c.name, sessions.c.created_at)
    )
    found: dict[str, list[Session]] = {}
    for row in connection.execute(query):
        found.setdefault(row.dependent, []).append(_from_row(row))
    return found


def history(connection: sa.Connection, session_id: str) -> list[Happening]:
    """What happened to a session, oldest first."""
    events = session_events.c
    query = sa.select(events.at, events.code, events.sentence, events.hint)
    rows = connection.execute(query.where(events.session_id == session_id).order_by(events.id))
    return [Happening(**row._mapping) for row in rows]


def _to_row(session: Session) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(session)
    return row


def _from_row(row: sa.Row[Any]) -> Session:
    values = {str(name): value for name, value in row._mapping.items() if value is not None}
    return msgspec.convert(values, Session)
