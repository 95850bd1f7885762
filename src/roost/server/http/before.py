"""What stands before the protocol of a connection, to see what comes to it."""

import asyncio
from typing import cast


class Before(asyncio.Protocol):
    """Passes everything on to the protocol that was there."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.inner = cast(asyncio.Protocol, transport.get_protocol())

    def data_received(self, data: bytes) -> None:
        self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.inner.connection_lost(exc)
