"""Rows of runs that have ended; the log of a run is its record, these outlive it."""

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from roost.server.store.tables import runs, sessions
from roost.wire.runs import RunEnd, RunState, RunSummary

Ended = tuple[str, RunSummary]
"""A session's id, and one of its runs."""


def record_all(connection: sa.Connection, ended: Sequence[Ended]) -> None:
    """Write down runs that have ended; those that are there already stay as they are."""
    ids = {session_id for session_id, _ in ended}
    ours = set(connection.execute(sa.select(sessions.c.id).where(sessions.c.id.in_(ids))).scalars())
    keys = sa.select(runs.c.session_id, runs.c.run_id).where(runs.c.session_id.in_(ids))
    known = {(session_id, run_id) for session_id, run_id in connection.execute(keys)}
    rows = {
        (session_id, run.run_id): _to_row(session_id, run, run.end)
        for session_id, run in ended
        if session_id in ours and run.end is not None
    }
    missing = [row for key, row in rows.items() if key not in known]
    if missing:
        connection.execute(runs.insert(), missing)


def of_session(connection: sa.Connection, session_id: str) -> list[RunSummary]:
    """A session's runs that have ended, oldest first."""
    query = sa.select(runs).where(runs.c.session_id == session_id).order_by(runs.c.accepted_at)
    return [_from_row(row) for row in connection.execute(query)]


def _to_row(session_id: str, run: RunSummary, end: RunEnd) -> dict[str, Any]:
    return {
        "session_id": session_id,
        "run_id": run.run_id,
        "last_seq": run.last_seq,
        "accepted_at": run.accepted_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        **msgspec.to_builtins(end),
        "reason": msgspec.to_builtins(end.reason),
    }


def _from_row(row: sa.Row[Any]) -> RunSummary:
    values = {str(name): value for name, value in row._mapping.items() if value is not None}
    end = msgspec.convert({name: values[name] for name in RunEnd.__struct_fields__ if name in values}, RunEnd)
    return RunSummary(
        run_id=row.run_id,
        state=RunState.ENDED,
        last_seq=row.last_seq,
        accepted_at=row.accepted_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        end=end,
    )
