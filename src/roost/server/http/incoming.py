"""What a WebSocket has sent and nobody has used: how much of it there is, and that it finds an end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from roost.server.http.before import Before
from roost.server.http.memory import WAIT_S, Room
from roost.wire.errors import TooMuchHeld

HEADER = 14
"""The longest header of a frame, in bytes (RFC 6455, 5.2)."""


class Incoming(Before):
    """Reads no more of a connection where there is no room.

    aiohttp keeps a message until it is whole, and tells nobody how much has come; so bytes are counted as they come,
    and taken off when the message that they were is used. It stands there for a `with` block.
    """

    def __init__(self, transport: asyncio.Transport, room: Room) -> None:
        super().__init__(transport)
        self._room = room
        self._unused = 0
        self._gives_up_at: float | None = None
        """When it has waited for room for too long; None while it reads."""
        self._reading: asyncio.Timeout | None = None

    def __enter__(self) -> Self:
        self.transport.set_protocol(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.transport.set_protocol(self.inner)
        self._go_on()

    def used(self, size: int) -> None:
        """A message of so many bytes is held no more."""
        self._unused = max(0, self._unused - size - HEADER)
        self._reckon()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Around the waiting for messages.

        Raises:
            TooMuchHeld: what comes has waited for room for `WAIT_S`.
        """
        try:
            async with asyncio.timeout_at(self._gives_up_at) as self._reading:
                yield
        except TimeoutError:
            raise TooMuchHeld from None
        finally:
            self._reading = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._unused += len(data)
        self._reckon()

    def _reckon(self) -> None:
        if self._room.take(self._unused, self._go_on):
            self._go_on()
        elif self.transport.is_reading():  # else aiohttp has paused it for reasons of its own, and will go on
            self.transport.pause_reading()
            self._give_up_at(asyncio.get_running_loop().time() + WAIT_S)

    def _go_on(self) -> None:
        if self._gives_up_at is not None:
            self._give_up_at(None)
            self.transport.resume_reading()

    def _give_up_at(self, when: float | None) -> None:
        self._gives_up_at = when
        if self._reading is not None and not self._reading.expired():
            self._reading.reschedule(when)
