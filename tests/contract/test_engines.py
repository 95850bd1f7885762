"""What every `Engine` promises."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.engines.base import Bundle, Engine, EngineConfig, Node
from roost.engines.local import LocalEngine
from roost.testing.engine import FakeEngine
from roost.wire.errors import NoCapacity, NotFound


@pytest.fixture(params=[LocalEngine, FakeEngine])
async def engine(request: pytest.FixtureRequest, data_dir: Path) -> AsyncIterator[Engine]:
    made: Engine = request.param()
    await made.open(EngineConfig(data_dir=data_dir, overcommit_cpu=1, overcommit_mem=1))
    yield made
    await made.aclose()


async def node_of(engine: Engine) -> Node:
    return (await engine.nodes())[0]


async def test_a_reservation_takes_and_a_release_gives_back(engine: Engine) -> None:
    before = await node_of(engine)

    await engine.reserve("a", [Bundle(node_id=before.node_id, slots={"cpu": 1, "mem": 1000})])
    during = await node_of(engine)
    await engine.release("a")
    after = await node_of(engine)

    assert during.available["cpu"] == before.available["cpu"] - 1
    assert during.available["mem"] == before.available["mem"] - 1000
    assert (during.capacity, after.available) == (before.capacity, before.available)


async def test_the_same_key_is_the_same_reservation(engine: Engine) -> None:
    node = await node_of(engine)
    bundle = Bundle(node_id=node.node_id, slots={"cpu": 1})

    first = await engine.reserve("a", [bundle])
    second = await engine.reserve("a", [bundle, bundle])

    assert first == second
    assert [one.key for one in await engine.reservations()] == ["a"]


async def test_all_bundles_are_reserved_or_none(engine: Engine) -> None:
    before = await node_of(engine)
    fits = Bundle(node_id=before.node_id, slots={"cpu": 1})
    too_much = Bundle(node_id=before.node_id, slots={"cpu": before.available["cpu"]})

    with pytest.raises(NoCapacity, match="cpu"):
        await engine.reserve("a", [fits, too_much])

    assert await node_of(engine) == before
    assert list(await engine.reservations()) == []


async def test_a_slot_or_node_that_is_not_there_has_no_room(engine: Engine) -> None:
    node = await node_of(engine)

    with pytest.raises(NoCapacity):
        await engine.reserve("a", [Bundle(node_id=node.node_id, slots={"tpu": 1})])
    with pytest.raises(NoCapacity):
        await engine.reserve("a", [Bundle(node_id="nowhere", slots={"cpu": 1})])


async def test_what_is_unknown_may_be_released_and_has_no_agent(engine: Engine) -> None:
    await engine.release("nobody")
    with pytest.raises(NotFound):
        await engine.agent("nowhere")
    assert await engine.agent((await node_of(engine)).node_id) is not None


async def test_closing_twice_is_fine(engine: Engine) -> None:
    await engine.aclose()
    await engine.aclose()
