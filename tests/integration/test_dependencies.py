"""Sessions that wait for others: the queue over scripted runs, and the same over HTTP."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from roost.server.domain.dependencies import MAX_GRAPH_DEPTH, dependency_tree
from roost.server.domain.sessions import JOB, Session
from roost.wire.errors import LimitExceeded
from roost.wire.runs import RunEnd, RunStatus
from roost.wire.sessions import SessionState as S
from roost.wire.sessions import SessionType
from tests.servers import Caller
from tests.worlds import World, a_world

BATCH: dict[str, Any] = {"type": SessionType.BATCH, "startup_command": "make"}
LATER: dict[str, Any] = {
    "image": "python",
    "type": "batch",
    "startupCommand": "ls",
    "starts_at": "1d",
    "enqueueOnly": True,
}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        await world.scheduler.open()
        yield world


async def after(world: World, *dependencies: Session, name: str = "after") -> Session:
    session = world.a_session(name)
    await world.ledger.create(session, [one.id for one in dependencies])
    return session


async def test_a_session_starts_when_all_that_it_depends_on_have_succeeded(world: World) -> None:
    first, second = await world.create("first", **BATCH), await world.create("second", **BATCH)
    session = await after(world, first, second)
    await world.agent.until_started(JOB)

    await world.until_state(first, S.RUNNING)
    await world.agent.finish(first.id, JOB, RunEnd(status=RunStatus.OK, exit_code=0))
    waiting = await world.until(session, lambda now: now.reason is not None and "first" not in now.reason.sentence)
    await world.until_state(second, S.RUNNING)
    await world.agent.finish(second.id, JOB, RunEnd(status=RunStatus.OK, exit_code=0))
    await world.until_state(session, S.RUNNING)

    scheduler = waiting.status_data["scheduler"]
    assert waiting.state is S.PENDING
    assert [one["name"] for one in scheduler["failed_predicates"]] == ["dependencies"]
    assert "second" in scheduler["failed_predicates"][0]["msg"]
    assert scheduler["passed_predicates"] == [{"name": "reserved_time"}]


async def test_a_session_whose_dependency_failed_is_cancelled_and_so_are_those_behind_it(world: World) -> None:
    world.agent.script[JOB] = RunEnd(status=RunStatus.ERROR, exit_code=1)
    first = await world.create("first", **BATCH)
    second = await after(world, first, name="second")
    third = await after(world, second, name="third")

    cancelled = await world.until_state(second, S.CANCELLED)
    last = await world.until_state(third, S.CANCELLED)

    assert cancelled.reason is not None
    assert last.reason is not None
    assert cancelled.reason.code == last.reason.code == "dependency-failed"
    assert "session first," in cancelled.reason.sentence
    assert "session second," in last.reason.sentence


async def test_dependencies_are_names_or_ids_of_the_owners_sessions(server: Caller) -> None:
    first = (await server("POST", "/session", LATER | {"name": "first"})).body["sessionId"]
    second = (await server("POST", "/session", LATER | {"name": "second", "dependencies": ["first"]})).body["sessionId"]
    await server("POST", "/session", LATER | {"name": "third", "dependencies": [first.upper(), "second"]})
    graph = (await server("GET", "/session/third/dependency-graph")).body
    beginning = await server("POST", "/session", LATER | {"name": "fourth", "dependencies": [first, "seco"]})
    many = await server("POST", "/session", LATER | {"name": "fourth", "dependencies": ["first"] * 65})
    ended = await server("DELETE", "/session/first", params={"recursive": "true"})
    dead = await server("POST", "/session", LATER | {"name": "fourth", "dependencies": ["first"], "starts_at": None})
    left = (await server("GET", "/session", params={"status": "all"})).body

    [one, two] = graph["depends_on"]
    assert (one["session_id"], one["session_name"], one["depends_on"]) == (first, "first", [])
    assert (two["session_id"], two["depends_on"]) == (second, [one])
    assert set(graph) == {"session_id", "session_name", "status", "status_changed", "depends_on"}
    assert (beginning.status, beginning.body["data"]) == (400, {"session_ref": "seco"})
    assert many.status == 400
    assert ended.body == [{"stats": {"status": "cancelled"}}] * 3
    assert dead.status == 201
    assert {one["name"]: one["status"] for one in left if one["name"] != "fourth"} == dict.fromkeys(
        ("first", "second", "third"), "CANCELLED"
    )
    assert {one["reason"]["code"] for one in left if one["name"] != "fourth"} == {"user-requested"}


async def test_a_tree_that_is_too_large_is_refused(world: World) -> None:
    chain = [world.a_session(f"s{number}") for number in range(MAX_GRAPH_DEPTH + 1)]
    single = {one.id: [two] for one, two in itertools.pairwise(chain)}
    double = {one: [*some, *some] for one, some in single.items()}

    assert dependency_tree(chain[2], single).depends_on[0].session is chain[3]
    with pytest.raises(LimitExceeded):
        dependency_tree(chain[0], single)
    with pytest.raises(LimitExceeded):
        dependency_tree(chain[30], double)
