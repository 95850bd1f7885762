"""Sessions, images and runs as JSON; pure."""

import json
import math
import platform
import time
from typing import Any

import msgspec

from roost.server.domain.dependencies import DependencyNode
from roost.server.domain.images import Image
from roost.server.domain.sessions import Happening, Session
from roost.server.domain.times import iso
from roost.wire.runs import RunSummary
from roost.wire.sandboxes import SandboxStats
from roost.wire.sessions import SessionState


def session_view(session: Session) -> dict[str, Any]:
    """A session as our own endpoints show it."""
    return {
        "id": session.id,
        "name": session.name,
        "type": session.spec.type.value,
        "status": session.state.value,
        "result": session.result.value,
        "image": session.image,
        "tag": session.spec.tag,
        "slots": session.spec.slots,
        "isolation": _plain(session.isolation),
        "reason": _plain(session.reason),
        "created_at": iso(session.created_at),
        "starts_at": _iso(session.spec.starts_at),
        "started_at": _iso(session.started_at),
        "ended_at": _iso(session.ended_at),
    }


def image_view(image: Image, aliases: list[str]) -> dict[str, Any]:
    """An image as our own endpoints show it."""
    maximum = {slot: amount for slot, amount in image.maximum.items() if not math.isinf(amount)}
    return {
        "reference": image.reference,
        "aliases": aliases,
        "kind": "host" if image.environment is None else "environment",
        "language": image.interpreter.language,
        "version": image.interpreter.version,
        "architecture": image.architecture,
        "base": image.base,
        "digest": image.environment,
        "size_bytes": image.size_bytes,
        "created_at": _iso(image.created_at),
        "labels": dict(image.labels),
        "minimum": dict(image.minimum),
        "maximum": maximum,
    }


def info_view(session: Session, *, user_id: str, domain: str, runs: int) -> dict[str, Any]:
    """The information body of spec/rest-sessions.md §8.1, and what we know beyond it.

    Official servers put texts into several of the fields, for people to read; so they are JSON texts here.
    """
    slots = json.dumps(session.spec.slots)
    ended_at = session.ended_at
    return {
        "domainName": domain,
        "groupId": session.group_id,
        "userId": user_id,
        "lang": session.image,
        "image": session.image,
        "architecture": session.spec.architecture or platform.machine(),
        "registry": "",
        "tag": session.spec.tag,
        "containerId": session.id,
        "occupiedSlots": slots if session.node_id else "{}",
        "occupyingSlots": slots if session.state is SessionState.RUNNING else "{}",
        "requestedSlots": slots,
        "occupiedShares": "{}",
        "environ": json.dumps(session.spec.environ),
        "resourceOpts": json.dumps(session.spec.resource_opts),
        "status": session.state.value,
        "statusInfo": session.reason.code if session.reason is not None else "",
        "statusData": session.status_data,
        "type": session.spec.type.value,
        "result": session.result.value,
        "age": int(((ended_at or time.time()) - session.created_at) * 1000),
        "creationTime": iso(session.created_at).replace("T", " "),
        "terminationTime": iso(ended_at).replace("T", " ") if ended_at is not None else None,
        "numQueriesExecuted": runs,
        "lastStat": None,
        "idleChecks": {},
        "reason": _plain(session.reason),
        "isolation": _plain(session.isolation),
    }


def dependency_view(node: DependencyNode) -> dict[str, Any]:
    """A session and, nested, what it depends on (spec/rest-sessions.md §13)."""
    return {
        "session_id": node.session.id,
        "session_name": node.session.name,
        "status": node.session.state.value,
        "status_changed": iso(node.session.status_changed),
        "depends_on": [dependency_view(one) for one in node.depends_on],
    }


def happening_view(happening: Happening) -> dict[str, Any]:
    """One entry of a session's history."""
    return msgspec.structs.asdict(happening) | {"at": iso(happening.at)}


def run_view(run: RunSummary) -> dict[str, Any]:
    """A run as our own endpoints show it."""
    end = run.end
    return {
        "run_id": run.run_id,
        "state": run.state.value,
        "last_seq": run.last_seq,
        "prompt": run.prompt,
        "status": end.status.value if end is not None else None,
        "exit_code": end.exit_code if end is not None else None,
        "reason": _plain(end.reason) if end is not None else None,
        "cost": _plain(end.cost) if end is not None else None,
        "accepted_at": iso(run.accepted_at),
        "started_at": _iso(run.started_at),
        "ended_at": _iso(run.ended_at),
    }


def stats_view(session: Session, stats: SandboxStats) -> dict[str, Any]:
    """The statistics of spec/rest-sessions.md §8.2; a session that never ran has none."""
    if session.state is SessionState.PENDING:
        return {"status": "cancelled"}
    metrics: dict[str, Any] = {}
    if stats.cpu_s is not None:
        metrics["cpu_used"] = _metric(round(stats.cpu_s * 1000, 3), "msec")
    if stats.mem_bytes is not None:
        metrics["mem"] = _metric(stats.mem_bytes, "bytes", capacity=int(session.spec.slots["mem"]))
        if stats.mem_peak_bytes is not None:
            metrics["mem"]["stats.max"] = str(stats.mem_peak_bytes)
    for key, value in (("io_read", stats.read_bytes), ("io_write", stats.written_bytes)):
        if value is not None:
            metrics[key] = _metric(value, "bytes")
    return {**metrics, "version": 2, "status": "terminated"} if metrics else {"status": "terminated"}


def _metric(current: float, unit: str, capacity: int | None = None) -> dict[str, Any]:
    return {
        "current": str(current),
        "capacity": str(capacity) if capacity is not None else None,
        "pct": f"{current / capacity * 100:.2f}" if capacity else None,
        "unit_hint": unit,
    }


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


def _iso(at: float | None) -> str | None:
    return iso(at) if at is not None else None
