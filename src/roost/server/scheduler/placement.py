"""First in, first out, where there is room; who may not start yet is passed by. Pure."""

from collections.abc import Sequence

import msgspec

from roost.engines.base import Bundle, Node
from roost.server.domain.times import iso
from roost.wire.reasons import Reason
from roost.wire.sessions import SessionResult, SessionState


class Dependency(msgspec.Struct, frozen=True, kw_only=True):
    """A session that another one waits for."""

    name: str
    state: SessionState
    result: SessionResult


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A session in the queue."""

    session_id: str
    slots: dict[str, float]
    starts_at: float | None = None
    """Not before this instant, Unix time."""
    dependencies: tuple[Dependency, ...] = ()
    """Not before each of these has succeeded."""
    node_id: str | None = None
    """On this node alone."""


class Checks(msgspec.Struct, frozen=True, kw_only=True):
    """The conditions of a session of its own, by the names of spec/sessions-lifecycle.md §6.2."""

    passed: tuple[str, ...] = ()
    failed: dict[str, str] = {}
    """With a sentence for each."""


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where the next session goes."""

    session_id: str
    bundle: Bundle


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """There is no room for the first in the queue; those behind it wait with it."""

    session_id: str
    reason: Reason
    checks: Checks


class Postponement(msgspec.Struct, frozen=True, kw_only=True):
    """The first in the queue may not start yet, is larger than every node, or its own is down; others go ahead."""

    session_id: str
    reason: Reason
    checks: Checks


class Dismissal(msgspec.Struct, frozen=True, kw_only=True):
    """The first in the queue will never start."""

    session_id: str
    reason: Reason


def place_next(
    waiting: Sequence[Waiting], nodes: Sequence[Node], now: float
) -> Placement | Refusal | Postponement | Dismissal | None:
    """Decide about the oldest waiting session; None where nobody waits."""
    if not waiting:
        return None
    first = waiting[0]
    if (lost := next((one for one in first.dependencies if _is_lost(one)), None)) is not None:
        sentence = f"session {lost.name}, which it depends on, ended as {lost.state} with result {lost.result}"
        hint = f"run {lost.name} again, then this"
        return Dismissal(
            session_id=first.session_id, reason=Reason(code="dependency-failed", sentence=sentence, hint=hint)
        )
    checks = _check(first, now)
    if checks.failed:
        reason = Reason(code="predicate-checks-failed", sentence="; ".join(checks.failed.values()))
        return Postponement(session_id=first.session_id, reason=reason, checks=checks)
    possible = [node for node in nodes if first.node_id in (None, node.node_id)]
    if first.node_id is not None and not possible:
        sentence = f"no node is up of the name {first.node_id}"
        reason = Reason(code="no-available-instances", sentence=sentence, hint="end it, and leave the node open")
        return Postponement(session_id=first.session_id, reason=reason, checks=checks)
    for node in possible:
        if _shortage(first, node) is None:
            return Placement(session_id=first.session_id, bundle=Bundle(node_id=node.node_id, slots=first.slots))
    if possible and (excess := _excess(first, possible)) is not None:
        reason = Reason(code="no-available-instances", sentence=excess, hint="end it, and ask for less")
        return Postponement(session_id=first.session_id, reason=reason, checks=checks)
    shortages = [text for node in possible if (text := _shortage(first, node))]
    sentence = "; ".join(shortages) or "no node is up"
    return Refusal(
        session_id=first.session_id,
        reason=Reason(code="no-available-instances", sentence=sentence, hint="end a session, or ask for less"),
        checks=checks,
    )


def next_start(waiting: Sequence[Waiting], now: float) -> float | None:
    """The earliest instant after now at which one more of these may start."""
    return min((one.starts_at for one in waiting if one.starts_at is not None and one.starts_at > now), default=None)


def _check(waiting: Waiting, now: float) -> Checks:
    failed = {}
    if waiting.starts_at is not None and waiting.starts_at > now:
        failed["reserved_time"] = f"it is to start at {iso(waiting.starts_at)}"
    awaited = [one for one in waiting.dependencies if one.result is not SessionResult.SUCCESS]
    if awaited:
        failed["dependencies"] = (
            f"it waits for the success of {', '.join(f'{one.name} ({one.state})' for one in awaited)}"
        )
    return Checks(passed=tuple(name for name in _PREDICATES if name not in failed), failed=failed)


_PREDICATES = ("reserved_time", "dependencies")


def _is_lost(dependency: Dependency) -> bool:
    return not dependency.state.is_live and dependency.result is not SessionResult.SUCCESS


def _excess(waiting: Waiting, nodes: Sequence[Node]) -> str | None:
    """What is needed of a slot that even an empty node does not have; None where one of the nodes is large enough."""
    told = None
    for node in nodes:
        missing = [slot for slot, need in waiting.slots.items() if need > node.capacity.get(slot, 0.0)]
        if not missing:
            return None
        have, need = node.capacity.get(missing[0], 0.0), waiting.slots[missing[0]]
        told = f"no node is large enough: {node.node_id} has {have:g} of {missing[0]} in all, {need:g} needed"
    return told


def _shortage(waiting: Waiting, node: Node) -> str | None:
    for slot, need in waiting.slots.items():
        rest = node.available.get(slot, 0.0)
        if need > rest:
            return f"node {node.node_id} has {rest:g} of {slot} left, {need:g} needed"
    return None
