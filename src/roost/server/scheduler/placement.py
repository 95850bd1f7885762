"""First in, first out, where there is room. Pure."""

from collections.abc import Sequence

import msgspec

from roost.engines.base import Bundle, Node
from roost.wire.reasons import Reason


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A session in the queue."""

    session_id: str
    slots: dict[str, float]


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where the next session goes."""

    session_id: str
    bundle: Bundle


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why the first in the queue has to wait; those behind it wait with it."""

    session_id: str
    reason: Reason


def place_next(waiting: Sequence[Waiting], nodes: Sequence[Node]) -> Placement | Refusal | None:
    """Decide about the oldest waiting session; None where nobody waits."""
    if not waiting:
        return None
    first = waiting[0]
    for node in nodes:
        if _shortage(first, node) is None:
            return Placement(session_id=first.session_id, bundle=Bundle(node_id=node.node_id, slots=first.slots))
    shortages = [text for node in nodes if (text := _shortage(first, node))]
    sentence = "; ".join(shortages) or "no node is up"
    return Refusal(
        session_id=first.session_id,
        reason=Reason(code="no-available-instances", sentence=sentence, hint="end a session, or ask for less"),
    )


def _shortage(waiting: Waiting, node: Node) -> str | None:
    for slot, need in waiting.slots.items():
        rest = node.available.get(slot, 0.0)
        if need > rest:
            return f"node {node.node_id} has {rest:g} of {slot} left, {need:g} needed"
    return None
