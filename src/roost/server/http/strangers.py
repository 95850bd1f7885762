"""Connections on which nobody has shown who he is: how many there may be, and for how long.

Whoever reaches the port could otherwise open connections, say nothing, and leave no descriptor to the sessions.
"""

import asyncio
import resource

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

KNOWN_WITHIN_S = 30.0
"""How long a connection is kept on which no request with valid credentials has come."""

MOST = 4096
"""As many of them are kept, however many descriptors there are: each takes some memory."""


class Strangers:
    """The connections of a server on which nobody has been recognised yet."""

    def __init__(self, most: int | None = None) -> None:
        """
        Args:
            most: as many connections there may be at once, known ones among them; None is half of the descriptors
                that this process may have, since sandboxes and logs need some too.
        """
        self._most = most if most is not None else max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, 64)
        self._timers: dict[RequestHandler, asyncio.TimerHandle] = {}

    def connect(self, server: web.Server) -> asyncio.BaseProtocol:
        """The protocol of a new connection. Where there are too many the oldest stranger goes."""
        if len(server.connections) >= self._most or len(self._timers) >= MOST:
            connected = set(server.connections)
            oldest = next((one for one in self._timers if one in connected), None)
            if oldest is None:
                return _Refusal()
            self._close(oldest)
        connection = server()
        loop = asyncio.get_running_loop()
        self._timers[connection] = loop.call_later(KNOWN_WITHIN_S, self._close, connection)
        return connection

    def recognise(self, connection: RequestHandler) -> None:
        """Somebody's credentials came on it; it may stay."""
        timer = self._timers.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _close(self, connection: RequestHandler) -> None:
        self.recognise(connection)
        connection.force_close()


class _Refusal(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
