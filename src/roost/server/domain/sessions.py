"""The life of a session as a table of transitions."""

from roost.wire.errors import Conflict
from roost.wire.sessions import SessionState as S

TRANSITIONS: dict[S, frozenset[S]] = {
    S.PENDING: frozenset({S.SCHEDULED, S.CANCELLED}),
    # A session whose node is lost while it is still prepared goes back to the queue.
    S.SCHEDULED: frozenset({S.PREPARING, S.PENDING, S.CANCELLED, S.TERMINATED}),
    S.PREPARING: frozenset({S.RUNNING, S.PENDING, S.CANCELLED, S.TERMINATED}),
    S.RUNNING: frozenset({S.TERMINATING, S.TERMINATED, S.ERROR}),
    S.TERMINATING: frozenset({S.TERMINATED, S.ERROR}),
    S.ERROR: frozenset({S.TERMINATED}),
    S.TERMINATED: frozenset(),
    S.CANCELLED: frozenset(),
}


def check_transition(old: S, new: S) -> None:
    """Refuse a step that the table does not have.

    Raises:
        Conflict: there is no such arrow.
    """
    if new not in TRANSITIONS[old]:
        raise Conflict(f"a session cannot go from {old} to {new}")
