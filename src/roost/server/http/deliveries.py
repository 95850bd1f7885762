"""Whether the answers of the compatible poll arrived, as far as the server's kernel can tell.

The poll has no acknowledgement on the wire, but TCP has: bytes that the peer's kernel has not acknowledged when their
connection goes away, or is replaced, were not delivered, and their run's cursor goes back.
"""

import asyncio
import contextlib
import fcntl
import struct
import termios
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from roost.server.domain.sessions import Session
from roost.server.http.before import Before
from roost.server.services.runs import Polled, Runs
from roost.wire.errors import RoostError

ACK_WAIT_S = 1.0
"""How long an acknowledgement may take before its absence tells something: kernels delay them by up to 0.2 s."""
LOOK_AGAIN_S = 0.01

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Delivery:
    """An answer that is being written, or was and is not acknowledged yet."""

    session: Session
    polled: Polled
    transport: asyncio.Transport
    has_moved: bool = False
    """Whether the run's cursor stands behind it."""
    is_lost: bool = False


class Deliveries:
    """The answers that are on their way; `aclose` waits for what is still being written down."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._on_their_way: dict[tuple[str, str], _Delivery] = {}
        self._returning: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        await asyncio.gather(*self._returning)

    async def settle(self, session_id: str, run_id: str, transport: asyncio.Transport) -> None:
        """Before a run is polled again: find out what became of the answer before.

        A client that polls on the same connection has read what came on it.
        """
        for key in self._keys_of(transport):
            del self._on_their_way[key]
        delivery = self._on_their_way.get((session_id, run_id))
        if delivery is not None:
            if not await self._arrives(delivery):
                delivery.is_lost = True  # one that is still being written moves no cursor any more
                await self._runs.undelivered(delivery.session, delivery.polled)
            self._forget(delivery)
        if self._returning:
            await asyncio.wait(self._returning)

    async def deliver(
        self, session: Session, polled: Polled, transport: asyncio.Transport, write: Awaitable[bool]
    ) -> None:
        """Write an answer, then move the run's cursor, and watch for evidence that it did not arrive.

        Args:
            write: writes it; whether the connection stays open, since one that the server closes tells nothing later.

        Raises:
            ConnectionError: the client is gone; the cursor stays.
        """
        delivery = _Delivery(session, polled, transport)
        self._on_their_way[session.id, polled.run_id] = delivery
        if not isinstance(transport.get_protocol(), _Watched):
            transport.set_protocol(_Watched(self, transport))
        try:
            goes_on = await write
            if not delivery.is_lost:
                await self._runs.delivered(session, polled)
                delivery.has_moved = True
        except BaseException:
            self._forget(delivery)
            raise
        if delivery.is_lost or not (goes_on or await self._arrives(delivery)):
            await self._runs.undelivered(session, polled)
        if not goes_on or unacknowledged(transport) == 0:
            self._forget(delivery)

    def lost(self, transport: asyncio.Transport) -> None:
        """A connection goes away; its socket can still be asked."""
        is_missing = unacknowledged(transport) > 0
        for key in self._keys_of(transport):
            delivery = self._on_their_way.pop(key)
            delivery.is_lost = is_missing
            if is_missing and delivery.has_moved:
                self._spawn(self._take_back(delivery))

    async def _arrives(self, delivery: _Delivery) -> bool:
        """Whether all of it is acknowledged, after a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ACK_WAIT_S):
                while not delivery.is_lost and unacknowledged(delivery.transport) > 0:
                    await asyncio.sleep(LOOK_AGAIN_S)
                return not delivery.is_lost
        return False

    async def _take_back(self, delivery: _Delivery) -> None:
        try:
            await self._runs.undelivered(delivery.session, delivery.polled)
        except RoostError as error:
            log.warning("poll.not_taken_back", session_id=delivery.session.id, error=error.message)

    def _keys_of(self, transport: asyncio.Transport) -> list[tuple[str, str]]:
        return [key for key, delivery in self._on_their_way.items() if delivery.transport is transport]

    def _forget(self, delivery: _Delivery) -> None:
        key = delivery.session.id, delivery.polled.run_id
        if self._on_their_way.get(key) is delivery:
            del self._on_their_way[key]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)


class _Watched(Before):
    """Hears of a connection's end while its socket can still be asked."""

    def __init__(self, deliveries: Deliveries, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._deliveries = deliveries

    def connection_lost(self, exc: Exception | None) -> None:
        self._deliveries.lost(self.transport)
        super().connection_lost(exc)


def unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes written to a connection that its peer's kernel has not acknowledged (tcp(7), SIOCOUTQ).

    0 once its socket is closed: then nothing is known any more.
    """
    waiting = bytearray(4)
    with contextlib.suppress(OSError, ValueError):  # closed
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, waiting)
    (queued,) = struct.unpack("i", waiting)
    return int(queued) + transport.get_write_buffer_size()
