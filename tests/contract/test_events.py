"""What every `EventBus` promises."""

import asyncio

import pytest

from roost.server.events.base import EventBus
from roost.server.events.memory import MemoryBus


@pytest.fixture(params=[MemoryBus])
def bus(request: pytest.FixtureRequest) -> EventBus:
    made: EventBus = request.param()
    return made


async def test_what_is_published_after_the_subscription_is_heard(bus: EventBus) -> None:
    async with bus.subscribe("a") as heard:
        await bus.publish("a")

        assert await heard.wait(5)
        assert not await heard.wait(0)


async def test_several_notices_may_come_as_one(bus: EventBus) -> None:
    async with bus.subscribe("a") as heard:
        for _ in range(3):
            await bus.publish("a")

        assert await heard.wait(5)
        assert not await heard.wait(0)


async def test_every_subscriber_hears_and_other_topics_are_not_heard(bus: EventBus) -> None:
    async with bus.subscribe("a") as first, bus.subscribe("a") as second, bus.subscribe("b") as other:
        await bus.publish("a")

        assert await first.wait(5)
        assert await second.wait(5)
        assert not await other.wait(0)


async def test_who_waits_is_woken(bus: EventBus) -> None:
    async with bus.subscribe("a") as heard:
        waiting = asyncio.create_task(heard.wait())
        await asyncio.sleep(0)
        await bus.publish("a")

        assert await asyncio.wait_for(waiting, 5)


async def test_a_cancelled_wait_loses_no_notice(bus: EventBus) -> None:
    async with bus.subscribe("a") as heard:
        waiting = asyncio.create_task(heard.wait())
        await asyncio.sleep(0)
        await bus.publish("a")
        waiting.cancel()
        await asyncio.wait([waiting])

        assert not waiting.cancelled() or await heard.wait(5)


async def test_publishing_to_nobody_is_fine_and_an_ended_subscription_is_gone(bus: EventBus) -> None:
    async with bus.subscribe("a"):
        pass

    await bus.publish("a")
