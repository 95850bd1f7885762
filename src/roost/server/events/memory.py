"""The bus of one process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from roost.server.events.base import EventBus, Subscription


class MemoryBus(EventBus):
    """Wakes subscribers of this process and event loop."""

    def __init__(self) -> None:
        self._topics: dict[str, set[_Waker]] = {}

    async def publish(self, topic: str) -> None:
        for waker in self._topics.get(topic, ()):
            waker.happened.set()

    @contextlib.asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[Subscription]:
        waker = _Waker()
        self._topics.setdefault(topic, set()).add(waker)
        try:
            yield waker
        finally:
            self._topics[topic].discard(waker)
            if not self._topics[topic]:
                del self._topics[topic]


class _Waker(Subscription):
    def __init__(self) -> None:
        self.happened = asyncio.Event()

    async def wait(self, timeout_s: float | None = None) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self.happened.wait()
        except TimeoutError:
            return False
        self.happened.clear()
        return True
