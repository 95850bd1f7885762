"""Requests, and what comes back (spec/client-sdk.md §4 and §14.4)."""

import asyncio
import functools
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, TypeAlias

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from roost.client.active import BaseSession, current_session
from roost.client.auth import generate_signature
from roost.client.errors import api_error
from roost.client.exceptions import ArgumentError, BackendClientError
from roost.client.sse import SSEMessage, SSEParser
from roost.client.websocket import WebSocketContextManager, WebSocketResponse
from roost.wire.versions import parse_version

__all__ = (
    "AttachedFile",
    "BaseResponse",
    "BlockingResponse",
    "ExtendedJSONEncoder",
    "FetchContextManager",
    "Request",
    "RequestContent",
    "Response",
    "SSEContextManager",
    "SSEMessage",
    "SSEResponse",
    "WebSocketContextManager",
    "WebSocketResponse",
)


RequestContent: TypeAlias = bytes | bytearray | str | IO[Any] | None

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNSIGNED_TYPE = "application/octet-stream"


class ExtendedJSONEncoder(json.JSONEncoder):
    """JSON with paths and decimals as text."""

    def default(self, o: Any) -> Any:
        return str(o) if isinstance(o, Path | Decimal) else super().default(o)


class AttachedFile(NamedTuple):
    """A file of a multipart request."""

    filename: str
    stream: IO[Any] | bytes
    content_type: str


class Request:
    """One request of the active session; build it, then `fetch` it once."""

    def __init__(
        self,
        method: str = "GET",
        path: str | None = None,
        content: RequestContent = None,
        *,
        content_type: str | None = None,
        params: Mapping[str, Any] | None = None,
        reporthook: Callable[..., Any] | None = None,
        override_api_version: str | None = None,
    ) -> None:
        self.session: BaseSession = current_session()
        self.config = self.session.config
        self.method = method
        self.path = (path or "").removeprefix("/")
        self.params = params
        self.reporthook = reporthook
        self.date: datetime | None = None
        if override_api_version is not None:
            self.api_version = parse_version(override_api_version)
        else:
            self.api_version = self.session.api_version
        self.headers: CIMultiDict[str] = CIMultiDict(
            {
                "User-Agent": self.config.user_agent,
                "X-BackendAI-Domain": self.config.domain,
                "X-BackendAI-Version": f"v{self.api_version[0]}.{self.api_version[1]}",
            }
        )
        self.content_type = ""
        self._content: Any = b""
        self._files: list[AttachedFile] = []
        self.set_content(content, content_type=content_type)

    @property
    def content(self) -> Any:
        """The bytes or stream set so far."""
        return self._content

    def set_content(self, value: RequestContent, *, content_type: str | None = None) -> None:
        """Send text, bytes or a stream."""
        if self._files:
            raise ArgumentError("this request has attached files; it cannot have another content")
        if value is None:
            self._content, guessed = b"", "text/plain"
        elif isinstance(value, str):
            self._content, guessed = value.encode(), "text/plain"
        else:
            self._content, guessed = value, "application/octet-stream"
        self.content_type = content_type or guessed

    def set_json(self, value: Any) -> None:
        """Send a value as JSON."""
        self.set_content(json.dumps(value, cls=ExtendedJSONEncoder), content_type="application/json")

    def attach_files(self, files: Sequence[AttachedFile]) -> None:
        """Send files as a multipart form, each in a field named `src`."""
        if not (isinstance(self._content, bytes) and self._content == b""):
            raise ArgumentError("this request has a content; it cannot have attached files")
        self._files = list(files)
        self.content_type = "multipart/form-data"

    def fetch(
        self, *, anonymous: bool = False, response_cls: "type[Response] | None" = None, check_status: bool = True
    ) -> "FetchContextManager":
        """Send it: `async with request.fetch() as response`, or plain `with` inside a `Session`."""
        self._check_method()
        return FetchContextManager(
            self, anonymous=anonymous, response_cls=response_cls or Response, check_status=check_status
        )

    def connect_events(self, *, response_cls: "type[SSEResponse] | None" = None) -> "SSEContextManager":
        """Open an event stream: `async with request.connect_events() as events`."""
        self._check_method()
        if self.method != "GET":
            raise ArgumentError(f"event streams are opened by GET, not {self.method}")
        return SSEContextManager(self, response_cls=response_cls or SSEResponse)

    def connect_websocket(
        self,
        *,
        on_enter: Callable[[aiohttp.ClientWebSocketResponse], Awaitable[Any]] | None = None,
        response_cls: type[WebSocketResponse] = WebSocketResponse,
    ) -> WebSocketContextManager:
        """Open a WebSocket: `async with request.connect_websocket() as socket`.

        Args:
            on_enter: is given the raw socket as soon as it is open.
        """
        self._check_method()
        if self.method != "GET":
            raise ArgumentError(f"WebSockets are opened by GET, not {self.method}")
        return WebSocketContextManager(self, on_enter=on_enter, response_cls=response_cls)

    def _check_method(self) -> None:
        if self.method not in _METHODS:
            raise ArgumentError(f"no such request method: {self.method!r}")

    async def send(self, *, anonymous: bool = False, bare: bool = False) -> aiohttp.ClientResponse:
        """Sign and send to the first endpoint that can be reached, from the session's loop.

        Args:
            bare: leave the content type away, as event streams do.

        Raises:
            BackendClientError: no endpoint could be reached.
        """
        problem: Exception | None = None
        for _ in self.config.endpoints:
            url, headers = self.signed(anonymous=anonymous, bare=bare)
            try:
                return await self.session.aiohttp_session.request(
                    self.method,
                    url,
                    data=self._data(),
                    headers=headers,
                    skip_auto_headers=("Content-Type",) if bare else (),
                    allow_redirects=False,
                )
            except aiohttp.ClientConnectionError as error:
                problem = error
                self.config.rotate_endpoints()
            finally:
                self.config.load_balance_endpoints()
        raise BackendClientError(f"cannot reach the server: {problem}") from problem

    def signed(self, *, anonymous: bool = False, bare: bool = False) -> tuple[URL, CIMultiDict[str]]:
        """Address and headers for the endpoint whose turn it is, as of now."""
        self.date = datetime.now(UTC)
        url = self._url()
        return url, self._signed_headers(url, anonymous, bare)

    def _url(self) -> URL:
        base = str(self.config.endpoint).rstrip("/")
        middle = "/func" if self.config.endpoint_type == "session" else ""
        url = URL(f"{base}{middle}/{self.path}")
        return url.update_query({key: _text(value) for key, value in self.params.items()}) if self.params else url

    def _signed_headers(self, url: URL, anonymous: bool, bare: bool) -> CIMultiDict[str]:
        assert self.date is not None
        headers = CIMultiDict(self.headers)
        headers["Date"] = self.date.isoformat()
        if not bare and not self._files:  # the boundary of a form is made by the HTTP library
            headers["Content-Type"] = self.content_type
        if anonymous or self.config.is_anonymous:
            return headers
        signed, _ = generate_signature(
            method=self.method,
            version=headers["X-BackendAI-Version"],
            endpoint=self.config.endpoint,
            date=self.date,
            rel_url=url.raw_path_qs,
            content_type=_UNSIGNED_TYPE if bare else self.content_type.partition(";")[0].strip(),
            access_key=self.config.access_key,
            secret_key=self.config.secret_key,
            hash_type=self.config.hash_type,
        )
        headers.update(signed)
        return headers

    def _data(self) -> Any:
        if not self._files:
            return None if isinstance(self._content, bytes) and not self._content else self._content
        form = aiohttp.FormData()
        for file in self._files:
            form.add_field("src", file.stream, filename=file.filename, content_type=file.content_type)
        return form


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


class BaseResponse:
    """What every answer has."""

    def __init__(self, session: BaseSession, raw_response: aiohttp.ClientResponse) -> None:
        self.session = session
        self.raw_response = raw_response

    @property
    def status(self) -> int:
        return self.raw_response.status

    @property
    def reason(self) -> str:
        return self.raw_response.reason or ""

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        return self.raw_response.headers

    @property
    def content_type(self) -> str:
        """Without parameters."""
        return self.raw_response.content_type

    @property
    def content_length(self) -> int | None:
        return self.raw_response.content_length

    @property
    def content(self) -> aiohttp.StreamReader:
        return self.raw_response.content


class Response(BaseResponse):
    """An answer whose body is read on demand, from whichever loop."""

    async def text(self) -> str:
        return await self.session.relay(self.raw_response.text())

    async def json(self, *, loads: Callable[..., Any] = json.loads) -> Any:
        """The parsed body; objects keep their order."""
        return functools.partial(loads, object_pairs_hook=OrderedDict)(await self.text())

    async def read(self, n: int = -1) -> bytes:
        """At most `n` bytes; all that are left where it is negative."""
        return await self.session.relay(self.raw_response.content.read(n))

    async def readall(self) -> bytes:
        return await self.session.relay(self.raw_response.content.read())


class BlockingResponse(BaseResponse):
    """An answer for callers without a loop: its methods return values."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.session, response.raw_response)
        self._response = response

    def text(self) -> str:
        return self.session.block_on(self._response.text())

    def json(self, *, loads: Callable[..., Any] = json.loads) -> Any:
        return self.session.block_on(self._response.json(loads=loads))

    def read(self, n: int = -1) -> bytes:
        return self.session.block_on(self._response.read(n))

    def readall(self) -> bytes:
        return self.session.block_on(self._response.readall())


class FetchContextManager:
    """Sends on entering, gives the connection back on leaving."""

    def __init__(self, request: Request, *, anonymous: bool, response_cls: type[Response], check_status: bool) -> None:
        self._request = request
        self._anonymous = anonymous
        self._response_cls = response_cls
        self._check_status = check_status
        self._raw: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> Response:
        return await self._request.session.relay(self._open())

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._request.session.relay(self._close())

    def __enter__(self) -> BlockingResponse:
        return BlockingResponse(self._request.session.block_on(self._open()))

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._request.session.block_on(self._close())

    async def _open(self) -> Response:
        self._raw = await self._request.send(anonymous=self._anonymous)
        if self._check_status and self._raw.status // 100 != 2:
            raise await api_error(self._raw)
        return self._response_cls(self._request.session, self._raw)

    async def _close(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.release()


class SSEResponse(BaseResponse):
    """An event stream; iterate over its messages. It reconnects by itself until `server_close`."""

    def __init__(
        self,
        session: BaseSession,
        raw_response: aiohttp.ClientResponse,
        *,
        connector: "SSEContextManager",
        auto_reconnect: bool = True,
        default_retry: float = 5,
    ) -> None:
        super().__init__(session, raw_response)
        self._connector = connector
        self._auto_reconnect = auto_reconnect
        self._retry = default_retry

    def __aiter__(self) -> AsyncIterator[SSEMessage]:
        return self.fetch_events()

    async def fetch_events(self) -> AsyncIterator[SSEMessage]:
        while True:
            parser = SSEParser()
            try:
                async for chunk in self.raw_response.content.iter_any():
                    for message in parser.feed(chunk):
                        if message.retry is not None:
                            self._retry = message.retry
                        yield message
                        if message.event == "server_close":
                            return
            except aiohttp.ClientError:
                if not self._auto_reconnect:
                    raise
            if not self._auto_reconnect:
                return
            await asyncio.sleep(self._retry)
            self.raw_response = await self._connector.reconnect()


class SSEContextManager:
    """Opens an event stream on entering, closes it on leaving."""

    def __init__(self, request: Request, *, response_cls: type[SSEResponse] = SSEResponse) -> None:
        self._request = request
        self._response_cls = response_cls
        self._raw: aiohttp.ClientResponse | None = None

    async def reconnect(self) -> aiohttp.ClientResponse:
        """Connect anew, with a fresh date."""
        if self._raw is not None:
            self._raw.close()
        self._raw = await self._request.send(bare=True)
        if self._raw.status // 100 != 2:
            raise await api_error(self._raw)
        return self._raw

    async def __aenter__(self) -> SSEResponse:
        return self._response_cls(self._request.session, await self.reconnect(), connector=self)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._raw is not None:
            self._raw.close()
