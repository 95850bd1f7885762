"""Which session API functions belong to."""

import abc
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import aiohttp

if TYPE_CHECKING:
    from roost.client.config import APIConfig

T = TypeVar("T")


class BaseSession(abc.ABC):
    """A connection to the server: what both kinds of session share."""

    is_async: ClassVar[bool] = False
    """Whether API functions are awaited here."""

    config: "APIConfig"
    proxy_mode: bool
    api_version: tuple[int, str]
    is_roost: bool = False
    """Whether the server is one of ours, which can do more than the API asks for."""
    aiohttp_session: aiohttp.ClientSession

    @property
    @abc.abstractmethod
    def closed(self) -> bool:
        """Whether `close` was called."""

    @abc.abstractmethod
    def call_api(self, coro: Coroutine[Any, Any, T]) -> Any:
        """Give the caller what calling an API function means here: a result, or something to await."""

    @abc.abstractmethod
    def iterate_api(self, items: AsyncGenerator[T, None]) -> Any:
        """Give the caller what iterating means here: a generator, or an asynchronous one."""

    @abc.abstractmethod
    async def relay(self, coro: Coroutine[Any, Any, T]) -> T:
        """Await something on the loop that this session's connections belong to, from any loop."""

    @abc.abstractmethod
    def block_on(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run something on the session's loop and wait.

        Raises:
            RuntimeError: this session has no loop that could be waited for.
        """


api_session: ContextVar[BaseSession] = ContextVar("api_session")
"""The session that API functions use; set while one is open."""


def current_session() -> BaseSession:
    """The active session.

    Raises:
        RuntimeError: there is none.
    """
    try:
        return api_session.get()
    except LookupError:
        raise RuntimeError("API functions work only inside a session: `with Session() as api: ...`") from None


class Activation:
    """One session's turn in `api_session`; ending it brings back the one before."""

    def __init__(self, session: BaseSession) -> None:
        self._token: Token[BaseSession] | None = api_session.set(session)

    def end(self) -> None:
        token, self._token = self._token, None
        if token is None:
            return
        # Closed in another context than the one it was opened in, there is nothing to bring back.
        with contextlib.suppress(ValueError):
            api_session.reset(token)
