"""Roost: self-hosted compute sessions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roost.client.blocking import Run as Run
    from roost.client.blocking import session as session
    from roost.client.handle import SessionSettings as SessionSettings
    from roost.client.handle import async_session as async_session
    from roost.client.results import Result as Result
    from roost.client.session import AsyncSession as AsyncSession
    from roost.client.session import Session as Session
    from roost.wire import errors as errors

# The SDK loads an HTTP library; the node, which shares this package, does not need it.
_HOMES = {
    "AsyncSession": "roost.client.session",
    "Result": "roost.client.results",
    "Run": "roost.client.blocking",
    "Session": "roost.client.session",
    "SessionSettings": "roost.client.handle",
    "async_session": "roost.client.handle",
    "session": "roost.client.blocking",
}
__all__ = ("AsyncSession", "Result", "Run", "Session", "SessionSettings", "async_session", "errors", "session")


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("roost.wire.errors")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
