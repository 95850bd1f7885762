"""WebSockets of the session API (spec/client-sdk.md §4)."""

from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import aiohttp

from roost.client.active import BaseSession
from roost.client.errors import api_error
from roost.client.exceptions import BackendClientError, HandshakeRefused

if TYPE_CHECKING:
    from roost.client.request import Request

HEARTBEAT_S = 30.0
MAX_MESSAGE = 16 << 20

_CLOSING = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED)


class WebSocketResponse:
    """An open WebSocket; iterate over its frames."""

    def __init__(self, session: BaseSession, raw_websocket: aiohttp.ClientWebSocketResponse) -> None:
        self.session = session
        self.raw_websocket = raw_websocket

    @property
    def closed(self) -> bool:
        return self.raw_websocket.closed

    async def close(self) -> None:
        await self.raw_websocket.close()

    def __aiter__(self) -> AsyncIterator[aiohttp.WSMessage]:
        return self.raw_websocket.__aiter__()

    def exception(self) -> BaseException | None:
        return self.raw_websocket.exception()

    async def send_str(self, raw_str: str) -> None:
        await self._open().send_str(raw_str)

    async def send_json(self, obj: Any) -> None:
        await self._open().send_json(obj)

    async def send_bytes(self, data: bytes) -> None:
        await self._open().send_bytes(data)

    async def receive_str(self) -> str:
        return await self._open().receive_str()

    async def receive_json(self) -> Any:
        return await self._open().receive_json()

    async def receive_bytes(self) -> bytes:
        return await self._open().receive_bytes()

    def _open(self) -> aiohttp.ClientWebSocketResponse:
        if self.raw_websocket.closed:
            raise aiohttp.ServerDisconnectedError("the server has closed the connection")
        return self.raw_websocket


class WebSocketContextManager:
    """Connects on entering, closes on leaving."""

    def __init__(
        self,
        request: "Request",
        *,
        on_enter: Callable[[aiohttp.ClientWebSocketResponse], Awaitable[Any]] | None = None,
        response_cls: type[WebSocketResponse] = WebSocketResponse,
    ) -> None:
        self._request = request
        self._on_enter = on_enter
        self._response_cls = response_cls
        self._raw: aiohttp.ClientWebSocketResponse | None = None

    async def __aenter__(self) -> WebSocketResponse:
        self._raw = await self._connect()
        if self._on_enter is not None:
            await self._on_enter(self._raw)
        return self._response_cls(self._request.session, self._raw)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._raw is not None:
            await self._raw.close()

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        request = self._request
        problem: Exception | None = None
        for _ in request.config.endpoints:
            url, headers = request.signed(bare=True)
            try:
                return await request.session.aiohttp_session.ws_connect(
                    url, headers=headers, heartbeat=HEARTBEAT_S, max_msg_size=MAX_MESSAGE
                )
            except aiohttp.WSServerHandshakeError as error:
                await self._explain(error)
            except aiohttp.ClientConnectionError as error:
                problem = error
                request.config.rotate_endpoints()
            finally:
                request.config.load_balance_endpoints()
        raise BackendClientError(f"cannot reach the server: {problem}") from problem

    async def _explain(self, error: aiohttp.WSServerHandshakeError) -> NoReturn:
        """The HTTP library drops the body of a refusal; the same request without an upgrade is refused alike."""
        raw = await self._request.send(bare=True)
        told = await api_error(raw)
        if raw.status == error.status:
            raise HandshakeRefused(told.status, told.reason, told.data) from error
        raise HandshakeRefused(error.status, error.message, {"type": "about:blank", "title": error.message}) from error
