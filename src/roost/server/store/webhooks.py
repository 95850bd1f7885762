"""The outbox of webhooks; each function is work for `Store.read` or `Store.write`."""

import sqlalchemy as sa

from roost.server.domain.sessions import Happening, Session
from roost.server.domain.webhooks import Delivery, body_of
from roost.server.store.tables import session_events, webhook_deliveries


def enqueue(connection: sa.Connection, session: Session, event: str | None, at: float) -> None:
    """Have a session's webhook told of an event, where it has one; in the transaction of the event itself."""
    if session.spec.callback_url is None or event is None:
        return
    row = {
        "session_id": session.id,
        "url": session.spec.callback_url,
        "event": event,
        "body": body_of(session.id, event, at),
        "attempts": 0,
        "next_at": at,
    }
    connection.execute(webhook_deliveries.insert().values(row))


def first_of_each(connection: sa.Connection) -> list[Delivery]:
    """The oldest delivery of each session; those behind it wait for it."""
    firsts = sa.select(sa.func.min(webhook_deliveries.c.id)).group_by(webhook_deliveries.c.session_id)
    query = sa.select(webhook_deliveries).where(webhook_deliveries.c.id.in_(firsts))
    found = connection.execute(query.order_by(webhook_deliveries.c.next_at))
    return [Delivery(**row._mapping) for row in found]


def postpone(connection: sa.Connection, delivery: Delivery, attempts: int, next_at: float) -> None:
    """Write down that an attempt has failed."""
    mine = webhook_deliveries.c.id == delivery.id
    connection.execute(webhook_deliveries.update().where(mine).values(attempts=attempts, next_at=next_at))


def remove(connection: sa.Connection, delivery: Delivery, given_up: Happening | None = None) -> None:
    """Forget a delivery that has arrived, or that was given up, which goes into the session's history."""
    connection.execute(webhook_deliveries.delete().where(webhook_deliveries.c.id == delivery.id))
    if given_up is not None:
        row = {"session_id": delivery.session_id, **{name: getattr(given_up, name) for name in _FIELDS}}
        connection.execute(session_events.insert().values(row))


_FIELDS = Happening.__struct_fields__
