"""What sessions depend on, as a tree."""

from collections.abc import Mapping, Sequence

import msgspec

from roost.server.domain.sessions import Session
from roost.wire.errors import LimitExceeded

MAX_GRAPH_DEPTH = 50
MAX_GRAPH_NODES = 1000
"""Who is depended on by several is told of once for each, so a small graph may be a large tree."""


class DependencyNode(msgspec.Struct, frozen=True, kw_only=True):
    """A session, and what it depends on."""

    session: Session
    depends_on: list["DependencyNode"]


def dependency_tree(session: Session, known: Mapping[str, Sequence[Session]]) -> DependencyNode:
    """The tree below a session.

    Args:
        known: what each session depends on, by id; those that depend on nothing may be left out.

    Raises:
        LimitExceeded: it is deeper or larger than one answer tells.
    """
    root = DependencyNode(session=session, depends_on=[])
    level, count = [root], 1
    for _ in range(MAX_GRAPH_DEPTH):
        below: list[DependencyNode] = []
        for node in level:
            if count > MAX_GRAPH_NODES:
                break
            node.depends_on.extend(DependencyNode(session=one, depends_on=[]) for one in known.get(node.session.id, ()))
            below += node.depends_on
            count += len(node.depends_on)
        level = below
        if not level:
            return root
        if count > MAX_GRAPH_NODES:
            break
    raise LimitExceeded(
        f"session {session.name} depends on more than {MAX_GRAPH_NODES} sessions, or is deeper than {MAX_GRAPH_DEPTH}",
        hint="ask for the graph of one that it depends on",
    )
