"""Connections to a server, blocking and not (spec/client-sdk.md §3)."""

import asyncio
import warnings
from collections.abc import AsyncGenerator, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp

from roost.client.active import Activation, BaseSession, api_session
from roost.client.config import MIN_API_VERSION, APIConfig, get_config, parse_api_version
from roost.client.exceptions import APIVersionWarning, ArgumentError, BackendError
from roost.client.func.base import BaseFunction
from roost.client.func.session import ComputeSession
from roost.client.func.session_template import SessionTemplate
from roost.client.request import Request
from roost.client.worker import Worker

__all__ = ("AsyncSession", "BaseSession", "Session", "api_session")

T = TypeVar("T")


class _Agreed(tuple[int, str]):
    """An API version, with what else the server said."""

    is_roost = False
    server: tuple[int, str] | None = None
    """The server's own; None where it does not say."""


async def _negotiate_api_version(http_session: aiohttp.ClientSession, config: APIConfig) -> tuple[int, str]:
    """The older of the server's version and ours; ours where the server does not say.

    A server of ours says so, and speaks every version that we do: that it has newer ones needs no warning.
    """
    ours = parse_api_version(config.version)
    base = str(config.endpoint).rstrip("/")
    url = f"{base}/func/" if config.endpoint_type == "session" else f"{base}/"
    try:
        async with http_session.get(url, headers={"User-Agent": config.user_agent}) as response:
            response.raise_for_status()
            told = await response.json()
            theirs = parse_api_version(told["version"])
    except (aiohttp.ClientError, TimeoutError):
        return ours
    except (KeyError, TypeError, ValueError) as error:
        warnings.warn(f"the server names no API version that we understand ({error})", APIVersionWarning, stacklevel=2)
        return ours
    agreed = _Agreed(min(theirs, ours))
    agreed.is_roost = "roost" in told
    agreed.server = theirs
    if theirs > ours and not agreed.is_roost:
        warnings.warn("the server is newer than this client", APIVersionWarning, stacklevel=2)
    elif theirs < MIN_API_VERSION:
        warnings.warn("the server is older than what this client supports", APIVersionWarning, stacklevel=2)
    return agreed


class _Connected(BaseSession):
    """What both sessions do alike."""

    ComputeSession: type[ComputeSession]
    SessionTemplate: type[SessionTemplate]

    def __init__(self, *, config: APIConfig | None = None, proxy_mode: bool = False) -> None:
        self.config = config if config is not None else get_config()
        self.proxy_mode = proxy_mode
        self.api_version = parse_api_version(self.config.version)
        self.server_version: tuple[int, str] | None = None
        """What the server speaks; None where it does not say, or cannot be reached."""
        self._closed = False
        self._activation: Activation | None = None
        for function_class in (ComputeSession, SessionTemplate):
            name = function_class.__name__
            setattr(self, name, type(name, (BaseFunction,), {**function_class.__dict__, "session": self}))

    @property
    def closed(self) -> bool:
        return self._closed

    def _make_http_session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=self.config.connection_timeout or None,
            sock_read=self.config.read_timeout or None,
        )
        connector = aiohttp.TCPConnector(ssl=not self.config.skip_sslcert_validation)
        return aiohttp.ClientSession(connector=connector, timeout=timeout)

    async def _negotiate(self) -> None:
        if not self.proxy_mode:
            self.api_version = await _negotiate_api_version(self.aiohttp_session, self.config)
            self.is_roost = getattr(self.api_version, "is_roost", False)
            self.server_version = getattr(self.api_version, "server", None)

    async def _announce(self) -> None:
        handler = self.config.announcement_handler
        if handler is None:
            return
        try:
            async with Request("GET", "/manager/announcement").fetch() as response:
                announcement = await response.json()
        except BackendError:
            return
        if announcement.get("enabled"):
            handler(announcement["message"])

    def _activate(self) -> None:
        self._activation = self._activation or Activation(self)

    def _deactivate(self) -> None:
        if self._activation is not None:
            self._activation.end()
            self._activation = None

    def _check_open(self) -> None:
        if self._closed:
            raise ArgumentError("this session is closed; make a new one")


class Session(_Connected):
    """A connection for code that waits: API functions return their results."""

    ComputeSession: Any
    """The class of the same name; its functions give results here where they are coroutines by their types."""
    SessionTemplate: Any

    def __init__(self, *, config: APIConfig | None = None, proxy_mode: bool = False) -> None:
        super().__init__(config=config, proxy_mode=proxy_mode)
        self._worker = Worker()
        self.aiohttp_session = self._worker.call(self._make_http_session_here())

    async def _make_http_session_here(self) -> aiohttp.ClientSession:
        return self._make_http_session()  # it belongs to the loop that it is made on

    @property
    def worker_thread(self) -> Worker:
        return self._worker

    def open(self) -> None:
        """Become the active session, and agree on a version with the server."""
        self._activate()
        self._worker.call(self._negotiate())

    def close(self) -> None:
        """Give everything back; may be called twice."""
        if self._closed:
            return
        self._closed = True
        self._worker.call(self.aiohttp_session.close())
        self._worker.stop()
        self._deactivate()

    def __enter__(self) -> Self:
        self._check_open()
        try:
            self.open()
            self._worker.call(self._announce())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def call_api(self, coro: Coroutine[Any, Any, T]) -> T:
        return self._worker.call(coro)

    def iterate_api(self, items: AsyncGenerator[T, None]) -> Any:
        return self._worker.iterate(items)

    async def relay(self, coro: Coroutine[Any, Any, T]) -> T:
        if self._worker.is_here():
            return await coro
        return await asyncio.wrap_future(self._worker.submit(coro))

    def block_on(self, coro: Coroutine[Any, Any, T]) -> T:
        return self._worker.call(coro)


class AsyncSession(_Connected):
    """A connection for coroutines: API functions are awaited. Made inside a running loop."""

    is_async = True

    def __init__(self, *, config: APIConfig | None = None, proxy_mode: bool = False) -> None:
        super().__init__(config=config, proxy_mode=proxy_mode)
        self.aiohttp_session = self._make_http_session()

    async def open(self) -> None:
        """Become the active session, and agree on a version with the server."""
        self._activate()
        await self._negotiate()

    async def close(self) -> None:
        """Give everything back; may be called twice."""
        if self._closed:
            return
        self._closed = True
        await self.aiohttp_session.close()
        self._deactivate()

    async def __aenter__(self) -> Self:
        self._check_open()
        try:
            await self.open()
            await self._announce()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def call_api(self, coro: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return coro

    def iterate_api(self, items: AsyncGenerator[T, None]) -> Any:
        return items

    async def relay(self, coro: Coroutine[Any, Any, T]) -> T:
        return await coro

    def block_on(self, coro: Coroutine[Any, Any, T]) -> T:
        coro.close()
        raise RuntimeError("inside an AsyncSession this is used with `async with` and `await`")
