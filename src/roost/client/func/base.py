"""Makes coroutine methods into API functions of whichever session is used (spec/client-sdk.md §3.1)."""

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, ClassVar, TypeVar

from roost.client.active import BaseSession, api_session, current_session

__all__ = ("APIFunctionMeta", "BaseFunction", "api_function")

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_MARK = "_backend_api"


def api_function(meth: F) -> F:
    """Mark a coroutine method, or an asynchronous generator, as an API function; goes above `@classmethod`."""
    setattr(getattr(meth, "__func__", meth), _MARK, True)
    return meth


class APIFunctionMeta(type):
    """Wraps the marked methods of a class; the originals remain as `_orig_<name>`."""

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(name, bases, namespace)
        for attribute, value in list(namespace.items()):
            if attribute.startswith("_orig_"):
                continue
            function = value.__func__ if isinstance(value, classmethod) else value
            if not getattr(function, _MARK, False):
                continue
            wrapped = _wrap(function)
            setattr(cls, f"_orig_{attribute}", value)
            setattr(cls, attribute, classmethod(wrapped) if isinstance(value, classmethod) else wrapped)


class BaseFunction(metaclass=APIFunctionMeta):
    """The base of every API class."""

    session: ClassVar[BaseSession]
    """The session that the class belongs to; classes that belong to none use the active one."""


def _wrap(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(owner: Any, *args: Any, **kwargs: Any) -> Any:
        session = getattr(owner, "session", None) or current_session()
        if inspect.isasyncgenfunction(function):
            return session.iterate_api(_iterate_in(session, function(owner, *args, **kwargs)))
        return session.call_api(_call_in(session, function(owner, *args, **kwargs)))

    delattr(call, _MARK)
    return call


async def _call_in(session: BaseSession, coro: Coroutine[Any, Any, T]) -> T:
    token = api_session.set(session)
    try:
        return await coro
    finally:
        api_session.reset(token)


async def _iterate_in(session: BaseSession, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    # The consumer's code runs between two items, so the session is active only while one is made.
    end: Any = object()
    try:
        while (item := await _call_in(session, _next(items, end))) is not end:
            yield item
    finally:
        await items.aclose()


async def _next(items: AsyncGenerator[T, None], end: Any) -> Any:
    return await anext(items, end)
