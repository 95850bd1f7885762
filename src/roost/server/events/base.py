"""The seam that wakes whoever waits for something to be written down.

What happened is always in the store; the bus only says that it is worth a look. So a notice carries nothing
but its topic, several may arrive as one, and a subscriber looks once by itself after it has subscribed.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager


class Subscription(ABC):
    """Notices of one topic, from the moment of `EventBus.subscribe` on."""

    @abstractmethod
    async def wait(self, timeout_s: float | None = None) -> bool:
        """Return True once something was published since the subscription began or `wait` last returned True.

        False after `timeout_s` seconds without; None waits without end. If the caller is cancelled, no notice
        is lost: the next call returns it.
        """


class EventBus(ABC):
    """Carries notices between those who write and those who wait."""

    @abstractmethod
    async def publish(self, topic: str) -> None:
        """Wake every subscriber of a topic. Call it after the commit, never before."""

    @abstractmethod
    def subscribe(self, topic: str) -> AbstractAsyncContextManager[Subscription]:
        """Hear of a topic for as long as the block lasts."""
